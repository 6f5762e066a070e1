"""What forms may set: no flags, no classes, nothing of Hydra's, no path outside the studio's folders."""

from pathlib import Path

import pytest

from tests.support.studio import folder
from tinyllm.errors import UserError
from tinyllm.studio.guard import check_arguments, check_composed


@pytest.mark.parametrize(
    "argument",
    [
        "--config-dir=/tmp",
        "--config-dir",
        "-m",
        "+new.key=1",
        "~model",
        "model@x=nano",
        "hydra.run.dir=/tmp",
        "hydra/launcher=joblib",
        "model._target_=os.system",
        "optimizer={_target_: os.system}",
        "model.layers.a='attn._target_=os.system'",
        "run.name=${oc.env:HOME}",
        "dataset.path=/etc/passwd",
        "dataset.path=../../etc/passwd",
        "dataset.path=~/x",
        "dataset.path=..",
        "dataset.path=a/../../../x",
        "dataset.path=link/x",
        "dataset.path=a\0b/c",
        "dataset.val_path=/etc/passwd",
        "tokenizer.path=/etc/passwd",
        "init_from=/etc",
        "dataset.name=/etc",
        "resume=/etc",
        "run.dir=/etc/x",
        "logger.dir=/etc",
        'dataset.sources.web="dataset=text dataset.path=/etc/passwd"',
        "dataset.sources={web: {path: /etc/passwd}}",
        "compare.arms.a=\"dataset=text dataset.path='/etc/passwd'\"",
        'validation="dataset=text dataset.path=/etc/passwd"',
        "conversations=/etc/passwd",
        "vs='init_from=/etc'",
        "study=/etc/study.yaml",
        "out=/etc/x",
        "trainer.max_steps",
    ],
)
def test_what_a_form_may_not_set(argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to("/etc")
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(UserError):
        check_arguments([argument], folder(tmp_path / "data"))


def test_what_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        *("model=nano", "hydra_like=1", "trainer.max_steps=1e3", "logger=[wandb,tensorboard]", "dataset.path=a/b.txt"),
        *(f"dataset.path={tmp_path}/outputs/../x.txt", "trainer.sample_prompt=${x} _target_ /etc", "resume=auto"),
        *(
            "tokenizer.path=gpt2",
            "run.name=path=1",
            "reference=a/b",
            "dataset.name=user/set",
            'dataset.sources.web="dataset=text dataset.path=web.txt"',
        ),
    ]
    check_arguments(arguments, folder(tmp_path))
    check_composed(
        {"dataset": {"path": ["a.txt", f"{tmp_path}/b"], "sources": {"a": {"path": None}}}}, folder(tmp_path)
    )
    with pytest.raises(UserError, match=r"outside the folders of the studio \(dataset.sources.a.path=/etc/x\)"):
        check_composed({"dataset": {"sources": {"a": {"path": "/etc/x"}}}}, folder(tmp_path))
