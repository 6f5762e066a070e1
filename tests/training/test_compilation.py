"""Compiled blocks: the same training and checkpoints as without, few programs, and clear failures."""

import json
import os
import re
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tinyllm
from tests.support.copies import run
from tests.support.training_runs import SMALL, digest, logged, metrics, train, train_elsewhere
from tests.training.test_trainer import small_model
from tinyllm.inference.generator import generate_text
from tinyllm.runs.checkpoint import find
from tinyllm.training.compilation import in_a_line, preserving_state

COMPILED = ("trainer.compile.enabled=true", "trainer.compile.backend=aot_eager")
INDUCTOR = ("trainer.compile.enabled=true",)


def outcome(run: Path) -> Any:
    """The facts on compiling in run.json."""
    return json.loads((run / "run.json").read_text(encoding="utf-8"))["compile"]


@pytest.fixture(scope="module")
def programs() -> list[tuple[int, ...]]:
    """Input sizes of every program compiled by the backend ``counting``; the backend ``failing`` always fails."""
    import torch._dynamo

    made: list[tuple[int, ...]] = []

    def counting(graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        made.append(next(tuple(one.shape) for one in inputs if isinstance(one, torch.Tensor) and one.ndim == 3))
        forward: Callable[..., Any] = graph.forward
        return forward

    def failing(graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        raise RuntimeError("no compiler today\nand many more lines")

    def interrupted(graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("the C++ compiler was killed by a signal")

    for backend in (counting, failing, interrupted):
        torch._dynamo.register_backend(backend)  # type: ignore[no-untyped-call]
    return made


@pytest.mark.slow
def test_compiled_training_is_bitwise_equal_and_its_checkpoint_loads_anywhere(corpus: str, tmp_path: Path) -> None:
    """This backend runs torch's own operations, so that every bit, dropout included, equals uncompiled training."""
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=4", "model.dropout=0.1", "model.layerdrop=0.3"]
    shared += ["ema.enabled=true", "trainer.eval_every=2", "trainer.sample_every=2", "trainer.sample_tokens=5"]
    whole, parts = tmp_path / "eager", tmp_path / "compiled"
    assert train(*shared, f"run.dir={whole}") == 0
    assert train(*shared, *COMPILED, f"run.dir={parts}", "trainer.stop_after_steps=2") == 0
    facts = outcome(parts)
    assert facts.pop("seconds") > 0
    assert facts == {"backend": "aot_eager", "mode": "default", "blocks": 2, "programs": 1, "failure": None}
    names = [*find(parts).weights(), *find(parts).state()["optimizer"], *find(parts).state()["average"]["shadow"]]
    assert not any("_orig_mod" in name or "module." in name for name in names)
    model, tokenizer = tinyllm.load(parts)
    assert generate_text(model, tokenizer, max_new_tokens=9)
    assert train(f"resume={parts}", "trainer.compile.enabled=false") == 0
    assert digest(parts) == digest(whole)
    assert metrics(parts) == metrics(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("moe=aux_free", "trainer.precision=bf16"), marks=pytest.mark.exhaustive),
        pytest.param(
            ("moe=aux_loss", "trainer.activation_checkpointing=true", "trainer.grad_accum_steps=2"),
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            ("attn=mla", "model.dropout=0.1", "model.attn_dropout=0.1", "trainer.precision=bf16"),
            marks=pytest.mark.exhaustive,
        ),
        ("attn=gqa", "model.n_kv_heads=1", "model.block.attn.window=6", "ffn=swiglu"),
        pytest.param(("norm=layernorm", "pos=learned", "trainer.precision=fp16"), marks=pytest.mark.exhaustive),
        pytest.param(
            ("model.dropout=0.1", "trainer.activation_checkpointing=2", "model.n_layers=3", "model.layerdrop=0.5"),
            marks=pytest.mark.exhaustive,
        ),
        ("curriculum.enabled=true", "model.max_seq_len=40", "trainer.precision=bf16", "dataloader.workers=1"),
        pytest.param(
            ("curriculum.enabled=true", "model.max_seq_len=40", "trainer.compile.dynamic=false"),
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_compiled_training_equals_eager_training_with_every_option(
    options: tuple[str, ...], corpus: str, tmp_path: Path
) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=6", *options]
    plain = [one for one in shared if not one.startswith("trainer.compile")]
    assert train(*plain, f"run.dir={tmp_path / 'eager'}") == 0
    shared += COMPILED
    assert train(*shared, f"run.dir={tmp_path / 'compiled'}") == 0
    assert logged(tmp_path / "compiled", "train/loss") == pytest.approx(
        logged(tmp_path / "eager", "train/loss"), rel=1e-3
    )
    assert train(*shared, f"run.dir={tmp_path / 'parts'}", "trainer.stop_after_steps=3") == 0
    assert train(f"resume={tmp_path / 'parts'}") == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "compiled")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "compiled")


def counted(corpus: str, run: Path, programs: list[tuple[int, ...]], *options: str) -> list[tuple[int, ...]]:
    """The programs of a run that also evaluates and samples; run.json has their number before the first step."""
    torch._dynamo.reset()  # what earlier runs of this process have taught the compiler about lengths
    programs.clear()
    shared = ["dataset=text", corpus, *SMALL, "trainer.compile.enabled=true", "trainer.compile.backend=counting"]
    shared += ["trainer.eval_every=3", "trainer.sample_every=3", "trainer.sample_tokens=5", "trainer.max_steps=6"]
    assert train(*shared, *options, f"run.dir={run}") == 0
    assert len(programs) == outcome(run)["programs"]
    return programs


RAMP = ("model.max_seq_len=44", "curriculum.enabled=true", "curriculum.steps=5")


@pytest.mark.slow
def test_lengths_share_a_program_and_evaluation_compiles_none(
    corpus: str, tmp_path: Path, programs: list[tuple[int, ...]]
) -> None:
    assert len(counted(corpus, tmp_path / "ramp", programs, *RAMP)) == 2
    assert len(set(logged(tmp_path / "ramp", "tokens"))) == 6


@pytest.mark.slow
def test_programs_are_made_before_the_first_step(corpus: str, tmp_path: Path, programs: list[tuple[int, ...]]) -> None:
    assert counted(corpus, tmp_path / "fixed", programs) == [(4, 16, 32)]
    each = counted(corpus, tmp_path / "each", programs, *RAMP, "trainer.compile.dynamic=false")
    assert [shape[1] for shape in each] == [8, 16, 24, 32, 44]
    # what the experts are given differs from step to step
    routed = ("moe=aux_free", "model.block.moe.n_experts=4", "model.block.moe.n_active=2", "model.block.moe.n_shared=0")
    counted(corpus, tmp_path / "routed", programs, *routed)
    kinds = ("model.block.attn.window=6", "trainer.precision=bf16")
    counted(corpus, tmp_path / "kinds", programs, *RAMP, *kinds)


@pytest.mark.slow
def test_a_compile_failure_is_reported_before_the_first_step(
    corpus: str, tmp_path: Path, programs: list[tuple[int, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.compile.enabled=true", "trainer.max_steps=2"]
    broken = [*shared, "trainer.compile.backend=failing"]
    assert train(*broken, f"run.dir={tmp_path / 'failed'}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the model cannot be compiled (trainer.compile.enabled=true): ")
    assert "no compiler today; trainer.compile.fallback=true trains uncompiled" in error and error.count("\n") == 1
    assert not list((tmp_path / "failed" / "checkpoints").glob("step-*")) and not logged(tmp_path / "failed", "step")
    assert train(*broken, "trainer.compile.fallback=true", f"run.dir={tmp_path / 'eager'}") == 0
    assert "training uncompiled: backend='failing' raised: RuntimeError: no compiler" in capsys.readouterr().out
    assert "no compiler today" in outcome(tmp_path / "eager")["failure"]
    plain = [*shared, "trainer.compile.enabled=false"]
    assert train(*plain, f"run.dir={tmp_path / 'plain'}") == 0
    assert digest(tmp_path / "eager") == digest(tmp_path / "plain")
    stopped = [*shared, "trainer.compile.backend=interrupted", f"run.dir={tmp_path / 'stopped'}"]
    assert train(*stopped) == 130
    assert json.loads((tmp_path / "stopped" / "run.json").read_text(encoding="utf-8"))["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        ("model.dropout=0.1", "model.attn_dropout=0.1"),
        ("attn=mla", "ffn=swiglu"),
        ("attn=gqa", "model.n_kv_heads=1", "model.block.attn.window=24", "model.block.attn.sinks=2"),
        ("norm=layernorm", "model.block.attn.softcap=5", "model.block.attn.qk_norm=true", "pos=learned"),
    ],
    ids=" ".join,
)
def test_a_block_is_one_graph_forwards_and_backwards(options: tuple[str, ...], precision: torch.dtype) -> None:
    """With several blocks of queries, whose gradients are written into slices of one tensor."""
    model = small_model(*options, "model.max_seq_len=144")
    block, x_BTC = model.layers()[0].train(), torch.randn(2, 144, 32)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own compiler
        found = []
        for run_block in (block, torch.compile(block, backend="eager", fullgraph=True)):
            torch.manual_seed(0)
            leaf = x_BTC.clone().requires_grad_()
            y_BTC, _ = run_block(leaf)
            y_BTC.float().square().sum().backward()
            found.append((y_BTC, leaf.grad))
    torch.compiler.reset()
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("trainer.compile.backend=gcc",),
            r"unknown compiler backend \(trainer.compile.backend=gcc\): torch offers .*inductor",
        ),
        (("trainer.compile.backend=aot_eager", "trainer.compile.mode=max-autotune"), "aot_eager turns it off"),
        (
            (*COMPILED, "trainer.compile.fullgraph=true", "moe=aux_loss"),
            "AuxLoss needs a new graph for every",
        ),
        (("trainer.compile.enabled=false", "trainer.compile.dynamic=true"), "compile.enabled=false turns it off"),
    ],
)
def test_what_is_refused(
    options: tuple[str, ...], said: str, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=2", f"run.dir={tmp_path / 'run'}"]
    assert train(*shared, "trainer.compile.enabled=true", *options) == 2
    assert re.search(said, capsys.readouterr().err)


def test_warm_up_restores_buffers_and_random_streams() -> None:
    model = small_model("moe=aux_free")
    model.register_buffer("count", torch.zeros(2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with preserving_state(model):
        torch.rand(7)
        model.get_buffer("count").add_(1)
        model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()  # type: ignore[operator]
    assert torch.equal(torch.rand(2), expected)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_compiler_error_is_shortened_to_one_line() -> None:
    assert in_a_line(None) == "a different rank failed"
    assert in_a_line(RuntimeError("\n one \n two")) == "one"
    assert (
        in_a_line(RuntimeError("backend='x' raised:\nKeyError: 3\n\nSet TORCH_LOGS"))
        == "backend='x' raised: KeyError: 3"
    )
    assert in_a_line(RuntimeError()) == "RuntimeError"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_compile_like_one_process(strategy: str, corpus: str, tmp_path: Path) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=4", "model.layerdrop=0.3", f"strategy={strategy}"]
    assert train(*shared[:-1], f"run.dir={tmp_path / 'one'}") == 0  # the tokens are in the cache from here on
    run(2, tmp_path / "eager", *shared)
    run(2, tmp_path / "compiled", *shared, *COMPILED)
    assert digest(tmp_path / "compiled") == digest(tmp_path / "eager")
    assert metrics(tmp_path / "compiled") == metrics(tmp_path / "eager")
    assert outcome(tmp_path / "compiled")["failure"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="fixed", marks=pytest.mark.exhaustive),
        pytest.param(("curriculum.enabled=true", "model.max_seq_len=40"), id="ramp", marks=pytest.mark.exhaustive),
    ],
)
def test_inductor_on_two_threads_is_repeatable_and_resumable(
    options: tuple[str, ...], corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only with torch's deterministic algorithms, which trainer.deterministic selects on a CPU."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    shared = ["dataset=text", corpus, *SMALL, *INDUCTOR, "trainer.max_steps=8", "model.dropout=0.1", *options]
    for name in ("one", "two"):
        process = train_elsewhere(*shared, f"run.dir={tmp_path / name}")
        assert process.wait(900) == 0, process.communicate()
        process.communicate()
    parts = tmp_path / "parts"
    for arguments in ([*shared, f"run.dir={parts}", "trainer.stop_after_steps=3"], [f"resume={parts}"]):
        process = train_elsewhere(*arguments)
        assert process.wait(900) == 0, process.communicate()
        process.communicate()
    assert digest(tmp_path / "one") == digest(tmp_path / "two") == digest(parts)
    assert metrics(tmp_path / "one") == metrics(tmp_path / "two") == metrics(parts)
    assert outcome(parts)["failure"] is None


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("trainer.precision=bf16",), ("moe=aux_free", "ema.enabled=true")],
)
def test_inductor_reaches_the_same_losses(options: tuple[str, ...], corpus: str, tmp_path: Path) -> None:
    shared = ["dataset=text", corpus, *SMALL, "trainer.max_steps=6", *options]
    assert train(*shared, f"run.dir={tmp_path / 'eager'}") == 0
    assert train(*shared, *INDUCTOR, f"run.dir={tmp_path / 'compiled'}") == 0
    eager, compiled = (logged(tmp_path / name, "train/loss") for name in ("eager", "compiled"))
    assert compiled == pytest.approx(eager, rel=1e-2)
    assert outcome(tmp_path / "compiled")["failure"] is None
