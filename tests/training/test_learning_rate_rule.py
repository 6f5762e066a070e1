"""The rule for the learning rate in runs: robust for every composition, kept by older runs, told to the user."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch

import tinyllm
from tests.support import options
from tests.support.training_runs import SMALL, digest, train
from tinyllm.config.build import build
from tinyllm.config.grammar import key_of
from tinyllm.config.learning_rates import RULES
from tinyllm.optim.schedules import Cosine
from tinyllm.programs.builders import build_optimizer
from tinyllm.programs.resume import to_save
from tinyllm.runs.checkpoint import find

STEPS, BATCH, LENGTH, VOCABULARY = 30, 4, 32, 61
WIDTH = 64
PICO = {"d_model": WIDTH, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": LENGTH, "d_ff": 4 * WIDTH}
PICO |= {"vocab_size": VOCABULARY, "init_std": 0.1}
PARAMETRIZATIONS = {
    "standard": {"_target_": "tinyllm.models.parametrization.Standard"},
    "mup": {"_target_": "tinyllm.models.parametrization.MuP", "base_width": 32, "base_heads": None},
}


def losses(node: dict[str, object], lr: float) -> list[float]:
    """Losses of a short training on sequences in which a token mostly determines the next one."""
    torch.manual_seed(0)
    model = build(node, path="model")
    cfg = tinyllm_optimizer(lr)
    optimizer, _ = build_optimizer(cfg, model, allow=frozenset())
    schedule = Cosine(lr=lr, n_steps=STEPS, warmup_steps=0.1, min_lr=None)
    generator = torch.Generator().manual_seed(1)
    found = []
    for step in range(STEPS):
        start = torch.randint(VOCABULARY, (BATCH, 1), generator=generator)
        ids = (start + 7 * torch.arange(LENGTH + 1)) % VOCABULARY
        noise = torch.rand(ids.shape, generator=generator) < 0.1
        ids = torch.where(noise, torch.randint(VOCABULARY, ids.shape, generator=generator), ids)
        for group in optimizer.param_groups:
            group["lr"] = schedule(step) * group.get("lr_scale", 1.0)
        logits = model.logits(model(ids[:, :-1]))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(loss.item())
    return found


def tinyllm_optimizer(lr: float):  # type: ignore[no-untyped-def]
    """The default optimizer at a learning rate."""
    cfg = tinyllm.compose()
    cfg.optimizer.lr = lr
    return cfg


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("attn", options.distinct("attn"))
def test_no_composition_diverges_at_half_and_at_twice_the_rule(attn: str) -> None:
    """For every feed-forward layer, mixture and parametrization, the last losses are well below those at the start."""
    rule = RULES[tinyllm.compose().optimizer._target_]
    diverged = []
    for ffn, moe, scheme in product(options.distinct("ffn"), options.distinct("moe"), PARAMETRIZATIONS):
        base = options.assembled(options.node(()), attn=attn, ffn=ffn, moe=moe)
        rate = rule.rate(32 if scheme == "mup" else WIDTH)
        for factor in (0.5, 1, 2):
            found = losses(base | PICO | {"parametrization": PARAMETRIZATIONS[scheme]}, factor * rate)
            if not sum(found[-5:]) / 5 < sum(found[:2]) / 2 - 0.3:
                diverged.append((ffn, moe, scheme, factor, found[0], found[-1]))
    assert diverged == []


@pytest.mark.slow
def test_a_run_of_an_earlier_version_resumes_with_its_optimizer_rate_and_horizon(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW and 2,000 steps were defaults then, so that its saved settings name neither."""
    defaults = ("optimizer", "optimizer.lr")
    shared = ("dataset=text", corpus, *SMALL, "model=nano")
    with monkeypatch.context() as then:
        then.setattr("tinyllm.config.compose.fill_horizon", lambda cfg, size: None)
        then.setattr(
            "tinyllm.programs.trainer_builder.to_save",
            lambda overrides: [one for one in to_save(overrides) if key_of(one) not in defaults],
        )
        assert train(*shared, "trainer.stop_after_steps=2", f"run.dir={tmp_path / 'old'}") == 0
    assert train(f"resume={tmp_path / 'old'}", "trainer.stop_after_steps=4") == 0
    run_json = json.loads((tmp_path / "old" / "run.json").read_text())
    assert run_json["choices"]["optimizer"] == "adamw"
    assert find(tmp_path / "old", prefer="last").manifest["max_steps"] == 2000
    assert train(*shared, "trainer.max_steps=2000", "trainer.stop_after_steps=4", f"run.dir={tmp_path / 'whole'}") == 0
    assert digest(tmp_path / "old") == digest(tmp_path / "whole")


def test_a_run_tells_its_learning_rate_and_a_fine_tuned_one_what_to_consider(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_rule = ("dataset=text", corpus, *SMALL, "optimizer=muon", "optimizer.lr=null", "trainer.max_steps=1")
    assert train(*by_rule, f"run.dir={tmp_path / 'first'}") == 0
    shown = capsys.readouterr().out
    assert "learning rate: 0.08: rule for muon, 0.02·128/d_model\n" in shown and "init_from" not in shown
    info = json.loads((tmp_path / "first" / "run.json").read_text())["info"]
    assert info["learning_rate"] == 0.08 and info["learning_rate_from"] == "rule for muon, 0.02·128/d_model"
    more = (f"init_from={tmp_path / 'first'}", f"run.dir={tmp_path / 'second'}")
    assert train(*by_rule, *more) == 0
    assert "set a smaller one, e.g. optimizer.lr=0.008\n" in capsys.readouterr().out
