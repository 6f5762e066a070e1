"""The user's own option files: only the chosen ones are checked, and mistakes in them are reported."""

from pathlib import Path

import pytest

import tinyllm
from tests.support.training_runs import SMALL, train, write_corpus
from tinyllm.errors import UserError

OWN = "# @package model.block.attn\n_target_: mine.Mine\n_partial_: true\nwindow: 4\n"
CLASS = """
from tinyllm.nn.attention.mha import MHA

class Mine(MHA):
    def __init__(self, *, window, **rest):
        super().__init__(window=window, head_dim=None, qk_norm=False, sinks=0, softcap=0.0, **rest)
"""
SIGNATURE = "*, d_model, n_heads, bias, attn_dropout, norm_eps, pos, window"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with the user's own option files, some of them broken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = CLASS.replace("*, window, **rest", SIGNATURE)
    text = text.replace(
        "**rest",
        "**{k: v for k, v in locals().items() if k in 'd_model n_heads bias attn_dropout norm_eps pos'.split()}",
    )
    (tmp_path / "mine.py").write_text(text)
    files = {
        "attn/mine.yaml": OWN,
        "attn/deep/mine.yaml": OWN,
        "attn/broken.yaml": "# @package model.block.attn\nwindow: [",
        "attn/list.yaml": "- window\n",
        "experiment/broken.yaml": "\tseed: 1",
        "experiment/octal.yaml": "# @package _global_\nmodel:\n  n_layers: 1\nseed: 010\n",
        "experiment/clock.yaml": "# @package _global_\nseed: 1:30\n",
        "experiment/below.yaml": "# @package _global_\ndefaults:\n  - octal\n  - override /attn: mha\nseed: 2\n",
        "experiment/quoted.yaml": "# @package _global_\nrun:\n  name: '010'\nseed: 10  # 010\n",
        "dataset/broken.yaml": "}",
    }
    for name, content in files.items():
        file = tmp_path / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    (tmp_path / "conf" / "attn" / "latin.yaml").write_bytes(b"window: 1 # \xff")
    return tmp_path


@pytest.mark.slow
def test_a_run_with_the_users_own_class_resumes_with_the_same_config_dir(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = f"dataset.path={write_corpus(place / 'words.txt', n_words=300)}"
    own = ("--config-dir", str(place / "conf"))
    assert train(*own, *SMALL, "dataset=text", data, "attn=deep/mine", "trainer.max_steps=1", "run.dir=run") == 0
    assert train("resume=run", "trainer.max_steps=2") == 2
    assert "attn=deep/mine: deep/mine is not the name of an option" in capfd.readouterr().err
    assert train(*own, "resume=run", "trainer.max_steps=2") == 0
    with pytest.raises(UserError, match=r"class not allowed \(model.block.attn._target_=mine.Mine"):
        tinyllm.load("run")
    from tinyllm.config.targets import options_of

    assert type(next(iter(tinyllm.load("run", allow=options_of(place / "conf"))[0].layers())).attn).__name__ == "Mine"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("attn=broken", r"unreadable configuration file \(.*attn/broken.yaml\)"),
        ("attn=list", r"unreadable configuration file \(.*attn/list.yaml\)"),
        ("attn=latin", r"unreadable configuration file \(.*attn/latin.yaml\)"),
        ("experiment=broken", r"unreadable configuration file \(.*experiment/broken.yaml\)"),
        ("experiment=octal", r"ambiguous number \(.*experiment/octal.yaml:4\): YAML reads 010 .* base 8"),
        ("experiment=clock", r"ambiguous number \(.*experiment/clock.yaml:2\): YAML reads 1:30 .* base 60"),
        ("experiment=below", r"ambiguous number \(.*experiment/octal.yaml:4\)"),
        ("attn=../attn/mine", r"no such option \(attn=../attn/mine\): an option is a name"),
        ("experiment=/somewhere/mine", r"no such option \(experiment=/somewhere/mine\): an option is a name"),
    ],
)
def test_a_broken_option_file_is_reported_when_it_is_chosen(setting: str, said: str, place: Path) -> None:
    with pytest.raises(UserError, match=said) as refused:
        tinyllm.compose(setting, config_dir=place / "conf")
    assert len(str(refused.value).splitlines()) == 1


def test_option_files_that_are_not_chosen_may_be_broken(place: Path) -> None:
    cfg = tinyllm.compose("experiment=quoted", "attn=mine", config_dir=place / "conf")
    assert (cfg.seed, cfg.run.name, cfg.model.block.attn._target_) == (10, "010", "mine.Mine")
