"""optimizer.lr=null is a rule of optimizer and width, the horizon follows from the size, and saved runs keep both."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf, open_dict

import tinyllm
from tests.support.models import options
from tinyllm.config.learning_rates import RULES, Rule, followed_rule, origin_of_rate
from tinyllm.config.migrations import former_choices, upgraded
from tinyllm.errors import UserError
from tinyllm.programs.resume import reconcile
from tinyllm.runs.layout import CONFIG

MUON = "tinyllm.optim.muon.Muon"


@pytest.mark.parametrize(
    ("settings", "rate", "origin"),
    [
        ((), 0.02, "rule for muon, 0.02·128/d_model"),
        (("model=tiny",), 0.01, "rule for muon, 0.02·128/d_model"),
        (("model=baby", "optimizer.lr=null"), 0.00667, "rule for muon, 0.02·128/d_model"),
        (("model=gpt2", "optimizer=adamw"), 0.0005, "rule for adamw, 0.003·128/d_model"),
        (("parametrization=mup", "model.d_model=512"), 0.02, "rule for muon, 0.02·128/base_width"),
        (("optimizer.lr=0.01",), 0.01, "as set; the rule for muon, 0.02·128/d_model, gives 0.02"),
    ],
)
def test_the_rule_and_where_a_rate_comes_from(settings: tuple[str, ...], rate: float, origin: str) -> None:
    cfg = tinyllm.compose(*settings)
    assert cfg.optimizer.lr == rate and origin_of_rate(cfg) == origin
    assert (followed_rule(cfg) is None) == origin.startswith("as set")


def test_every_optimizer_has_a_rule_that_falls_with_the_width() -> None:
    for optimizer in options("optimizer"):
        cfg = tinyllm.compose(f"optimizer={optimizer}")
        assert RULES[cfg.optimizer._target_].optimizer == optimizer
        assert cfg.optimizer.lr == RULES[cfg.optimizer._target_].constant
        assert RULES[cfg.optimizer._target_].rate(768) == pytest.approx(cfg.optimizer.lr / 6, rel=5e-3)


def test_layers_of_different_kinds_have_the_rule_as_well() -> None:
    kinds = 'model.layers.kinds={a:"attn=mqa",b:""}'
    assert tinyllm.compose("layers=pattern", kinds, "model.layers.pattern=[a,b]").optimizer.lr == 0.02


def test_the_users_own_optimizer_has_no_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_optimizer.py").write_text("def made(params, *, lr: float | None): ...\n")
    (tmp_path / "optimizer").mkdir()
    text = "# @package optimizer\n_target_: own_optimizer.made\n_partial_: true\nlr: null\n"
    (tmp_path / "optimizer" / "own.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    from tinyllm.programs.builders import build_schedule

    cfg = tinyllm.compose("optimizer=own", config_dir=tmp_path)
    with pytest.raises(UserError, match=r"no learning rate \(optimizer.lr=null\): there is a rule only for muon"):
        build_schedule(cfg, n_steps=10, allow=frozenset())
    assert origin_of_rate(cfg) == "as set"


@pytest.mark.parametrize(
    ("settings", "steps"),
    [((), 1200), (("model=tiny",), 2000), (("model=pico",), 2000), (("trainer.max_steps=7",), 7),
     (("trainer.max_steps=null",), 1200), (("trainer.max_tokens=1e6",), None), (("trainer.max_epochs=2",), None)],
)  # fmt: skip
def test_the_horizon_follows_from_the_size(settings: tuple[str, ...], steps: int | None) -> None:
    assert tinyllm.compose(*settings).trainer.max_steps == steps


def saved(tmp_path: Path, *settings: str, **changes: Any) -> Any:
    """A stand-in for the checkpoint of a run with these settings, some values changed."""
    cfg = tinyllm.compose(*settings)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    OmegaConf.save(cfg, tmp_path / CONFIG)
    return SimpleNamespace(path=tmp_path, run_dir=tmp_path)


@pytest.mark.parametrize("named", [["resume"], ["resume", "optimizer"]])
def test_a_resumed_run_keeps_its_rate_when_the_rule_changes(
    named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = saved(tmp_path, "optimizer=muon")
    monkeypatch.setitem(RULES, MUON, Rule(optimizer="muon", constant=0.5))
    cfg = tinyllm.compose("optimizer=muon")
    assert cfg.optimizer.lr == 0.5
    notes = reconcile(cfg, checkpoint, named=named)
    assert notes == ["optimizer.lr=0.02 as in the run (the configuration has 0.5 now)"]
    assert cfg.optimizer.lr == 0.02
    typed = tinyllm.compose("optimizer.lr=0.1")
    assert reconcile(typed, checkpoint, named=["resume", "optimizer.lr"]) and typed.optimizer.lr == 0.1


def test_an_older_run_keeps_its_horizon(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, trainer__max_steps=None)
    cfg = tinyllm.compose()
    assert reconcile(cfg, checkpoint, named=["resume"]) and cfg.trainer.max_steps == 2000
    tokens = tinyllm.compose("trainer.max_tokens=1e6")
    assert upgraded(tokens) is tokens


def test_an_older_run_keeps_its_optimizer() -> None:
    """Its settings do not name it, since it was the default."""
    old = tinyllm.compose("optimizer=adamw")
    select = {"optimizer._target_": old.optimizer._target_}.get
    assert former_choices(["seed=1"], select) == ["optimizer=adamw"]
    assert former_choices(["optimizer=adamw"], select) == former_choices(["experiment=nanogpt_char_cpu"], select) == []
    assert former_choices(["seed=1"], {"optimizer._target_": MUON}.get) == []
    assert former_choices(["seed=1"], {"optimizer._target_": "mine.Optimizer"}.get) == []


def test_a_job_of_an_older_sweep_keeps_its_optimizer(tmp_path: Path) -> None:
    """A job is composed before its run is known."""
    checkpoint = saved(tmp_path, "optimizer=adamw", "optimizer.lr=3e-4", "optimizer.eps=1e-7")
    cfg = tinyllm.compose("optimizer.lr=5e-4")
    with open_dict(cfg):
        notes = reconcile(cfg, checkpoint, named=["seed", "optimizer.lr"])
    assert OmegaConf.to_container(cfg.optimizer) == OmegaConf.to_container(
        tinyllm.compose("optimizer=adamw", "optimizer.lr=5e-4", "optimizer.eps=1e-7").optimizer
    )
    assert notes[0] == "optimizer: tinyllm.optim.adamw.adamw as in the run (the default is tinyllm.optim.muon.Muon now)"
