"""The training loop: accumulation, clipping, NaN and infinity, metrics, recompute, averaged weights."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tinyllm
from tests.support.training_runs import SMALL, digest, logged, metrics, train
from tinyllm.data.batch import Batch
from tinyllm.errors import UserError
from tinyllm.programs.builders import build_model, build_optimizer
from tinyllm.programs.evaluate import evaluate_run
from tinyllm.runs.checkpoint import find
from tinyllm.training import trainer as trainer_module
from tinyllm.training.memory_estimate import activation_bytes
from tinyllm.training.objectives.base import Loss
from tinyllm.training.objectives.next_token import NextToken
from tinyllm.training.trainer import Trainer, clip


def small_model(*overrides: str) -> torch.nn.Module:
    sizes = [one for one in SMALL if one.startswith("model.")]
    cfg = tinyllm.compose(*sizes, *overrides)
    return build_model(cfg, vocab_size=20, seed=3, device=torch.device("cpu"), allow=frozenset())


def test_accumulation_is_the_mean_over_tokens_whatever_the_micro_batches(corpus: str, tmp_path: Path) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=5"]
    for name, options in {
        "one": ("trainer.batch_size=12",),
        "three": ("trainer.batch_size=4", "trainer.grad_accum_steps=3"),
        "tokens": ("trainer.batch_size=2", "trainer.total_batch_tokens=192"),
    }.items():
        assert train(*shared, f"run.dir={tmp_path / name}", *options) == 0
    whole, three, tokens = (find(tmp_path / name).weights() for name in ("one", "three", "tokens"))
    for name, tensor in whole.items():
        torch.testing.assert_close(three[name], tensor, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(tokens[name], tensor, rtol=1e-4, atol=2e-5)
    assert logged(tmp_path / "three", "train/loss") == pytest.approx(logged(tmp_path / "one", "train/loss"), rel=1e-5)


@pytest.mark.slow
def test_autocast_rounds_each_weight_once_per_step(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the casts of a step with three micro-batches; weights and losses are those of rounding in every one."""
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=2", "trainer.grad_accum_steps=3"]
    shared += ["trainer.precision=bf16", "trainer.activation_checkpointing=2", "model.n_layers=2"]
    casts: list[Counter[int]] = []
    in_step = Trainer.train_step

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in matrices:
                casts[-1][args[0].data_ptr()] += 1
            return func(*args, **(kwargs or {}))

    matrices: set[int] = set()

    def counted_step(self: Trainer, batches: Iterator[Any]) -> dict[str, float]:
        kinds = self.model.parameter_kinds()
        matrices.update(p.data_ptr() for name, p in self.model.named_parameters() if kinds[name] == "matrix")
        casts.append(Counter())
        with Casts():
            return in_step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", counted_step)
        assert train(*shared, f"run.dir={tmp_path / 'once'}") == 0
    assert len(casts) == 2 and all(set(step) == matrices and set(step.values()) == {1} for step in casts)
    monkeypatch.setattr(trainer_module, "shared_casts", lambda device: nullcontext())
    assert train(*shared, f"run.dir={tmp_path / 'each'}") == 0
    assert digest(tmp_path / "once") == digest(tmp_path / "each")
    assert logged(tmp_path / "once", "train/loss") == logged(tmp_path / "each", "train/loss")


def test_ragged_targets_weigh_every_token_the_same() -> None:
    """Micro-batches with different numbers of targets give the gradient of the whole batch, not a mean of means."""
    torch.manual_seed(0)
    objective = NextToken(small_model(), chunk_tokens=0)
    inputs, targets = torch.randint(20, (4, 16)), torch.randint(20, (4, 16))
    targets[0, 3:] = targets[2, 10:] = -100
    batch = Batch(inputs=inputs, targets=targets)
    count = batch.counted
    assert count == int((targets != -100).sum()) == objective.weight(batch)
    (objective(batch).total / count).backward()
    whole = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    for row in range(4):
        part = Batch(inputs=inputs[row : row + 1], targets=targets[row : row + 1])
        (objective(part).total / count).backward()
    for name, p in objective.named_parameters():
        torch.testing.assert_close(p.grad, whole[name], rtol=1e-5, atol=1e-7)
    logits = objective.model.logits(objective.model(inputs))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
    found = objective(batch).metrics["train/loss"] / count
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_clipping_equals_torch_and_reports_the_norm_before(max_norm: float) -> None:
    torch.manual_seed(1)
    parameters = [
        torch.nn.Parameter(torch.randn(7, 3)),
        torch.nn.Parameter(torch.randn(4)),
        torch.nn.Parameter(torch.randn(2)),
    ]
    for p in parameters[:2]:
        p.grad = torch.randn_like(p)
    before = [p.grad.clone() for p in parameters[:2] if p.grad is not None]
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in before))
    assert float(clip(list(parameters), max_norm)) == pytest.approx(norm, rel=1e-6)
    scale = min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
    for p, g in zip(parameters, before, strict=False):
        torch.testing.assert_close(p.grad, g * scale)
    assert parameters[2].grad is None


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """A set to fill with the numbers of forward passes, from 0, whose loss is to become NaN."""
    steps: set[int] = set()
    count = iter(range(10**6))
    original = NextToken.forward

    def forward(self: NextToken, *arguments: Any) -> Loss:
        loss = original(self, *arguments)
        return loss.as_nan() if next(count) in steps else loss

    monkeypatch.setattr(NextToken, "forward", forward)
    yield steps


def test_a_step_with_a_nan_loss_is_skipped_and_changes_nothing(corpus: str, tmp_path: Path, poisoned: set[int]) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=4"]
    assert train(*shared, f"run.dir={tmp_path / 'before'}", "trainer.stop_after_steps=2") == 0
    poisoned.add(2 + 2)  # the third step of the next run
    assert train(*shared, f"run.dir={tmp_path / 'skipped'}", "trainer.stop_after_steps=3") == 0
    before, after = find(tmp_path / "before"), find(tmp_path / "skipped")
    assert all(torch.equal(tensor, after.weights()[name]) for name, tensor in before.weights().items())
    for name, values in before.state()["optimizer"].items():
        assert all(torch.equal(value, after.state()["optimizer"][name][key]) for key, value in values.items())
    assert after.step == 3 and after.state()["skipped"] == 1
    assert train(f"resume={tmp_path / 'skipped'}") == 0
    assert find(tmp_path / "skipped").state()["skipped"] == 0


def test_patience_and_stop_end_the_run_with_its_last_checkpoint_intact(
    corpus: str, tmp_path: Path, poisoned: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=20", "trainer.checkpoint_every=2"]
    poisoned.update(range(5, 30))
    assert train(*shared, f"run.dir={tmp_path / 'patient'}", "trainer.nonfinite.patience=3") == 2
    assert "not finite for 3 steps in a row" in capsys.readouterr().err
    for tensor in find(tmp_path / "patient").weights().values():
        assert torch.isfinite(tensor).all()
    poisoned.clear()
    poisoned.update(range(200))
    assert train(*shared, f"run.dir={tmp_path / 'stopped'}", "trainer.nonfinite.action=stop") == 2
    assert "trainer.nonfinite.action=stop" in capsys.readouterr().err
    assert not list((tmp_path / "stopped" / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_fp16_keeps_its_scale_and_logs_the_unscaled_norm(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=2", "trainer.precision=fp16"]
    original = torch.amp.GradScaler
    norms = {}
    for scale in (2.0**8, 2.0**12):
        monkeypatch.setattr(
            torch.amp, "GradScaler", lambda device, enabled, s=scale: original(device, init_scale=s, enabled=enabled)
        )
        assert train(*shared, f"run.dir={tmp_path / str(scale)}") == 0
        assert find(tmp_path / str(scale)).state()["scaler"]["scale"] == scale
        norms[scale] = logged(tmp_path / str(scale), "train/grad_norm")
    assert norms[2.0**8] == pytest.approx(norms[2.0**12], rel=1e-2)


@pytest.mark.slow
def test_a_record_is_the_mean_since_the_last_one_and_carries_every_axis(corpus: str, tmp_path: Path) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=7"]
    assert train(*shared, f"run.dir={tmp_path / 'each'}") == 0
    assert train(*shared, f"run.dir={tmp_path / 'third'}", "trainer.log_every=3") == 0
    each, third = logged(tmp_path / "each", "train/loss"), metrics(tmp_path / "third")
    assert [record["step"] for record in third] == [3, 6, 7]
    means = [sum(each[:3]) / 3, sum(each[3:6]) / 3, each[6]]
    assert [record["train/loss"] for record in third] == pytest.approx(means, rel=1e-12)
    model = small_model()
    for record in metrics(tmp_path / "each"):
        assert record["tokens"] == record["train/tokens"] == record["step"] * 64
    vocabulary = 18
    per_token = 3 * (model.flops_per_token(16) - 2 * 32 * (20 - vocabulary))  # type: ignore[operator]
    assert third[-1]["flops"] == 7 * 64 * per_token


def test_the_best_checkpoint_has_the_lowest_val_loss(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyllm.programs import evaluator

    losses = iter([3.0, math.nan, 2.0, math.nan, 2.5])
    monkeypatch.setattr(evaluator, "evaluate_sources", lambda *a, **k: {"val/loss": next(losses), "val/ppl": 1.0})
    run = tmp_path / "run"
    assert train("dataset=text", corpus, *SMALL, "trainer.max_steps=5", "trainer.eval_every=1", f"run.dir={run}") == 0
    assert (run / "checkpoints" / "best").read_text().strip() == "step-000003"
    assert find(run, prefer="best").state()["best_loss"] == 2.0
    assert {path.name for path in (run / "checkpoints").glob("step-*")} == {"step-000003", "step-000005"}
    assert [record["val/loss"] for record in metrics(run)] == [3.0, None, 2.0, None, 2.5]


def test_initial_weights_depend_only_on_the_seed() -> None:
    cfg = tinyllm.compose("model.d_model=32", "model.n_heads=2", "optimizer.lr=3e-4")
    build = lambda seed: build_model(cfg, vocab_size=9, seed=seed, device=torch.device("cpu"), allow=frozenset())  # noqa: E731
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = build(1), build(1), build(2)
    assert torch.equal(torch.rand(1), first)  # the global stream was left where it was
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    assert all(same) and not torch.equal(next(one.parameters()), next(other.parameters()))
    assert build_optimizer(cfg, one, allow=frozenset())[0].param_groups[0]["lr"] == 3e-4


@pytest.mark.slow
def test_regularisation_terms_are_logged_separately(corpus: str, tmp_path: Path) -> None:
    """The plain loss of the first step, and the validation loss at lr 0, are the same with and without them."""
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=1", "trainer.eval_every=1", "optimizer.lr=0"]
    assert train(*shared, f"run.dir={tmp_path / 'plain'}") == 0
    terms_only = ("objective.label_smoothing=0.1", "objective.z_loss=1e-3")
    assert train(*shared, f"run.dir={tmp_path / 'terms'}", *terms_only) == 0
    (plain,), (terms,) = metrics(tmp_path / "plain"), metrics(tmp_path / "terms")
    assert terms["train/loss"] == pytest.approx(plain["train/loss"], rel=1e-5)
    assert terms["val/loss"] == plain["val/loss"]
    assert terms["train/grad_norm"] != plain["train/grad_norm"]
    assert terms["loss/z"] > 0 and terms["loss/smoothing"] != 0
    assert not {"loss/z", "loss/smoothing"} & set(plain)


@pytest.mark.parametrize("every", ["true", pytest.param("2", marks=pytest.mark.slow)])
def test_recompute_changes_memory_and_no_bit(corpus: str, tmp_path: Path, every: str) -> None:
    """With everything random or stateful in a forward pass: dropout, LayerDrop, a mixture's bias, accumulation."""
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=4", "moe=aux_free", "model.dropout=0.1"]
    shared += ["model.attn_dropout=0.1", "model.layerdrop=0.5", "model.n_layers=3", "trainer.grad_accum_steps=2"]
    assert train(*shared, f"run.dir={tmp_path / 'kept'}") == 0
    assert train(*shared, f"run.dir={tmp_path / 'again'}", f"trainer.activation_checkpointing={every}") == 0
    assert digest(tmp_path / "kept") == digest(tmp_path / "again")
    assert logged(tmp_path / "kept", "train/loss") == logged(tmp_path / "again", "train/loss")


def test_recompute_saves_only_the_inputs_of_blocks() -> None:
    """By the tensors that autograd saves for the backward pass, and by the estimate."""
    kept = {}
    for every in (0, 2, 1):
        model: Any = small_model("model.n_layers=4")
        model.recompute_every = every
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = model(torch.zeros(4, 16, dtype=torch.int64))
        estimate = activation_bytes(model, batch_size=4, seq_len=16, device="cpu", dtype=torch.float32)
        kept[every] = sum(sizes.values()), estimate
        hidden.sum().backward()
    (all_kept, all_estimated), (half, half_estimated), (none, none_estimated) = kept[0], kept[2], kept[1]
    assert none < half < all_kept and none_estimated < half_estimated < all_estimated


@pytest.mark.slow
def test_averaged_weights_are_evaluated_sampled_and_loaded(corpus: str, tmp_path: Path) -> None:
    """The raw weights are bit for bit those of a run without averaging."""
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=6", "trainer.eval_every=6", "optimizer.lr=0.01"]
    assert train(*shared, f"run.dir={tmp_path / 'without'}") == 0
    assert train(*shared, f"run.dir={tmp_path / 'with'}", "ema.enabled=true", "ema.decay=0.5") == 0
    without, averaged = find(tmp_path / "without"), find(tmp_path / "with")
    assert all(torch.equal(tensor, averaged.weights()[name]) for name, tensor in without.weights().items())
    assert metrics(tmp_path / "without")[-1]["train/loss"] == metrics(tmp_path / "with")[-1]["train/loss"]
    shadow = averaged.state()["average"]["shadow"]
    for weights, expected in (("auto", shadow), ("ema", shadow), ("raw", averaged.weights())):
        model, _ = tinyllm.load(tmp_path / "with", weights=weights)
        assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters())
    evaluated = {}
    for run, weights in (("without", "auto"), ("with", "raw"), ("with", "ema")):
        cfg = tinyllm.compose(f"run={tmp_path / run}", f"weights={weights}", program="evaluate")
        evaluated[run, weights] = evaluate_run(cfg, cfg.run)["val/loss"]
    assert evaluated["with", "ema"] == pytest.approx(metrics(tmp_path / "with")[-1]["val/loss"], rel=1e-6)
    assert evaluated["with", "raw"] == evaluated["without", "auto"] != evaluated["with", "ema"]
    with pytest.raises(UserError, match=r"the run has no averaged weights \(weights=ema\)"):
        tinyllm.load(tmp_path / "without", weights="ema")


@pytest.mark.slow
def test_deterministic_algorithms_do_not_fill_memory_and_change_no_bit(corpus: str, tmp_path: Path) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=4"]
    for value in ("true", "false"):
        assert train(*shared, f"run.dir={tmp_path / value}", f"trainer.deterministic={value}") == 0
    assert digest(tmp_path / "true") == digest(tmp_path / "false")
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
