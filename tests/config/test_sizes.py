"""model.d_ff follows from the width unless it is given, and is saved as a number."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

import tinyllm
from tinyllm.errors import UserError
from tinyllm.programs.cost import cost_of_node
from tinyllm.programs.describe import figures_of
from tinyllm.programs.resume import reconcile
from tinyllm.runs.layout import CONFIG
from tinyllm.studies.compare.matching import solve

SIZES = {"pico": 256, "nano": 512, "tiny": 1024, "baby": 1536, "gpt2": 3072, "medium": 3072, "large": 6400}
SIZES |= {"xlarge": 8192, "7b": 16512}


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        *(pytest.param((f"model={name}",), size, id=name) for name, size in SIZES.items()),
        (("model.d_model=384",), 1536),
        (("model=tiny", "model.d_model=100"), 400),
        (("model.d_model=384", "model.d_ff=512"), 512),
        (("model.d_ff=null",), 512),
    ],
)
@pytest.mark.every(4)
def test_d_ff_is_four_times_the_width_by_default(settings: tuple[str, ...], wanted: int) -> None:
    assert tinyllm.compose(*settings).model.d_ff == wanted


def test_each_kind_of_layer_may_have_its_own_d_ff() -> None:
    kinds = 'model.layers.kinds={a:"model.d_ff=64",b:"attn=gqa",c:"model.d_ff=null"}'
    pattern = ("layers=pattern", kinds, "model.layers.pattern=[a,b,c]", "model.n_layers=3")
    cfg = tinyllm.compose(*pattern, "model.d_ff=100", "tokenizer=byte")
    assert figures_of(cfg)[0]["model"]["hidden size"] == "64, 100, 512"


def test_the_users_own_model_may_accept_a_null_d_ff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_model.py").write_text("def model(*, d_model: int, d_ff: int | None, **more): ...\n")
    (tmp_path / "model").mkdir()
    text = "# @package model\ndefaults: [nano, _self_]\n_target_: own_model.model\n"
    (tmp_path / "model" / "own.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert tinyllm.compose("model=own", config_dir=tmp_path).model.d_ff is None


def test_an_old_run_keeps_its_d_ff(tmp_path: Path) -> None:
    """Then, model.d_model alone did not change d_ff; resuming with the same command gives the same model."""
    asked = ("model=tiny", "model.d_model=384")
    OmegaConf.save(tinyllm.compose(*asked, "model.d_ff=1024"), tmp_path / CONFIG)
    checkpoint: Any = SimpleNamespace(path=tmp_path, run_dir=tmp_path)
    cfg = tinyllm.compose(*asked)
    assert reconcile(cfg, checkpoint, named=["model", "model.d_model"]) and cfg.model.d_ff == 1024
    with pytest.raises(UserError, match=r"cannot change model.d_ff \(model.d_ff=1536\)"):
        reconcile(tinyllm.compose(*asked), checkpoint, named=["model.d_ff"])


@pytest.mark.parametrize(("settings", "held"), [((), True), (("ffn=swiglu", "model.block.ffn.d_ff=64"), False)])
def test_matching_by_width_reports_d_ff(settings: tuple[str, ...], held: bool) -> None:
    cfg = tinyllm.compose(*settings, "model.vocab_size=300")
    node: Any = OmegaConf.to_container(cfg.model, resolve=True)
    target = cost_of_node(node | {"d_model": 192}, vocab_size=300, seq_len=None, allow=frozenset())
    found = solve(cfg, target=target, match="params", match_by=["d_model"], fixed=(), tolerance=0.01, vocab_size=300)
    assert found.values == {"model.d_model": 192} | ({"model.d_ff": 512} if held else {})
    again = tinyllm.compose(*settings, *(f"{key}={value}" for key, value in found.values.items()))
    plain: Any = OmegaConf.to_container(again.model, resolve=True)
    assert cost_of_node(plain, vocab_size=300, seq_len=None, allow=frozenset()) == found.account
