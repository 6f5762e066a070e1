"""What ``benchmarks/gpu.py`` measures; each part runs in a process of its own."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VOCAB = {"gpt2": 50257, "medium": 32000, "large": 32000}
"""Entries of the vocabulary by model, as in ``conf/model``."""
MOST_TOKENS = 2**16
"""Most tokens of a micro-batch: more are no faster on any GPU."""
TRAIN = "-m", "tinyllm.train"
Figures = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What every part is told.

    Attributes:
        work: directory for data and runs, shared by the parts.
        tiny: use sizes that a CPU trains in seconds.
    """

    device: str
    tiny: bool
    work: Path

    @property
    def data(self) -> Path:
        """Random token ids, (rows, 4097) int32: enough for every context."""
        return self.work / "tokens.npy"


@dataclass(frozen=True)
class Part:
    """A part of the benchmark: a name, its time limit in seconds, and what measures it."""

    name: str
    limit: float
    measure: Callable[[Context], Figures]


def machine(context: Context) -> Figures:
    """Versions, and the measured ceilings: bf16 and fp32 matrix products, and a copy in memory."""
    import torch

    figures: Figures = {"torch": torch.__version__, "device": context.device}
    if context.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        figures |= {"device": properties.name, "memory_gb": properties.total_memory / 1e9, "cuda": torch.version.cuda}
    size = 256 if context.tiny else 8192
    for dtype in (torch.bfloat16, torch.float32):
        square = torch.randn(size, size, device=context.device, dtype=dtype)
        seconds = best_seconds(lambda square=square: square @ square, context)
        figures[f"{dtype}".removeprefix("torch.") + "_tflops"] = 2 * size**3 / seconds / 1e12
    source = torch.empty(2**20 if context.tiny else 2**30, device=context.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = best_seconds(lambda: target.copy_(source), context)
    figures["copy_gb_per_s"] = 2 * source.numel() / seconds / 1e9
    (context.work / "machine.json").write_text(json.dumps(figures), encoding="utf-8")
    return figures


def best_seconds(call: Callable[[], object], context: Context, *, repeats: int = 20) -> float:
    """The shortest time of a call, synchronized."""
    import torch

    def wait() -> None:
        if context.device == "cuda":
            torch.cuda.synchronize()

    times = []
    for _ in range(3 if context.tiny else repeats):
        wait()
        started = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - started)
    return min(times)


def gpu_tests(context: Context) -> Figures:
    """The tests that need a GPU."""
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, marked)]
    if context.tiny:
        command.append("--collect-only")
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    summary = finished.stdout.strip().splitlines()[-1:] or [""]
    return {"exit": finished.returncode, "summary": summary[0]}


def training(model: str, *settings: str, steps: int = 30) -> Callable[[Context], Figures]:
    """A part that trains a model with these settings and reports speed, memory and MFU."""

    def measure(context: Context) -> Figures:
        chosen = [one for one in settings if not (context.tiny and one == COMPILED)]
        # The plain loop trains with AdamW.
        optimizer = [] if any(one.startswith("optimizer=") for one in settings) else ["optimizer=adamw"]
        precision = [] if any(one.startswith("trainer.precision") for one in settings) else ["trainer.precision=bf16"]
        size = TINY if context.tiny else [f"model={model}"]
        common = [*size, *optimizer, *precision, *chosen, *data_settings(context, model)]
        n_steps = 6 if context.tiny else steps

        def attempt(batch: int) -> Figures:
            run = Path(tempfile.mkdtemp(dir=context.work)) / "run"
            tinyllm(
                *TRAIN,
                *common,
                f"trainer.batch_size={batch}",
                f"trainer.max_steps={n_steps}",
                f"trainer.log_every={max(1, n_steps // 10)}",
                "trainer.eval_every=0",
                "trainer.sample_every=0",
                "checkpoint.enabled=false",
                f"trainer.device={context.device}",
                f"run.dir={run}",
            )
            records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            timed = [record for record in records if "speed/tokens_per_s" in record]
            speed = statistics.median(record["speed/tokens_per_s"] for record in timed[len(timed) // 2 :])
            flops = described([*common, f"trainer.batch_size={batch}"])["FLOPs per token"]["train"]
            peak = max(record.get("memory/peak_bytes", 0) for record in timed)
            return {"batch": batch, "tokens_per_s": speed, **utilization(context, speed * flops), "peak_gb": peak / 1e9}

        return with_less_memory(attempt, batch_size(context, common))

    return measure


def utilization(context: Context, flops_per_s: float) -> Figures:
    """``mfu``: of the dense bf16 peak in the data sheet; ``of_product``: of the product that ``machine`` measured."""
    import torch

    from tinyllm.utils.device import peak_flops

    peak = None if context.device == "cpu" else peak_flops(torch.device(context.device), "bf16")
    figures: Figures = {} if peak is None else {"mfu": flops_per_s / peak}
    measured = context.work / "machine.json"
    if measured.exists():
        product = json.loads(measured.read_text(encoding="utf-8"))["bfloat16_tflops"]
        figures["of_product"] = flops_per_s / (product * 1e12)
    return figures


def with_less_memory(attempt: Callable[[int], Figures], batch: int) -> Figures:
    """The figures of the largest batch that fits: the estimate is halved while memory runs out."""
    while True:
        try:
            return attempt(batch)
        except SystemExit as error:
            if batch == 1 or "memory" not in str(error):
                raise
            batch //= 2


TINY_VOCAB = 256
"""As in ``plain_gpt.py``: with more, head and loss would be most of a tiny step."""
TINY = ["model=pico", "trainer.seq_len=32", "model.max_seq_len=32"]


def data_settings(context: Context, model: str) -> list[str]:
    """The random tokens as data set, with the vocabulary of the model."""
    vocab = TINY_VOCAB if context.tiny else VOCAB[model]
    return ["dataset=npy", f"dataset.path={context.data}", f"tokenizer.vocab_size={vocab}"]


def tinyllm(*command: str) -> str:
    """Run one of our programs; returns its output.

    Raises:
        SystemExit: it failed; the message is its last line.
    """
    finished = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    if finished.returncode:
        raise SystemExit("\n".join((finished.stderr or finished.stdout).strip().splitlines()[-1:]) or "no output")
    return finished.stdout


def described(settings: list[str]) -> Figures:
    """What ``tinyllm.describe`` says of a composition."""
    import tinyllm
    from tinyllm.programs.describe import figures_of

    figures, _ = figures_of(tinyllm.compose(*settings))
    return figures


def batch_size(context: Context, settings: list[str]) -> int:
    """The largest power of two of sequences whose estimated memory fits into 80 % of the GPU's."""
    import torch

    import tinyllm

    if context.tiny or context.device == "cpu":
        return 2
    total = torch.cuda.mem_get_info(context.device)[0]
    one, two = (described([*settings, f"trainer.batch_size={n}"])["memory"]["together"] for n in (1, 2))
    fits = int((0.8 * total - (2 * one - two)) / (two - one))  # the estimate is linear in the batch
    most = max(1, MOST_TOKENS // int(tinyllm.compose(*settings).model.max_seq_len))
    return 1 << (max(1, min(fits, most)).bit_length() - 1)


def plain_loop(size: str) -> Callable[[Context], Figures]:
    """A part that trains the same size with a minimal GPT instead of tinyllm."""

    def measure(context: Context) -> Figures:
        script = str(ROOT / "benchmarks" / "plain_gpt.py")

        def attempt(batch: int) -> Figures:
            tiny = ["tiny"] if context.tiny else []
            figures: Figures = json.loads(tinyllm(script, size, str(batch), context.device, *tiny).splitlines()[-1])
            return {"batch": batch, **figures}

        settings = ["optimizer=adamw", "trainer.precision=bf16", *data_settings(context, size)]
        return with_less_memory(attempt, batch_size(context, [f"model={size}", *settings]))

    return measure


def decoding(prompts: int) -> Callable[[Context], Figures]:
    """A part that generates with the gpt2 shape and random weights, greedy, bf16."""

    def measure(context: Context) -> Figures:
        import torch

        import tinyllm
        from tinyllm.inference.generator import generate_batch
        from tinyllm.inference.sampling import Sampling
        from tinyllm.programs.builders import build_model
        from tinyllm.tokenizers.ids import IdsTokenizer
        from tinyllm.utils.device import autocast

        device = torch.device(context.device)
        cfg = tinyllm.compose("model=pico" if context.tiny else "model=gpt2", "tokenizer=ids")
        model = build_model(cfg, vocab_size=VOCAB["gpt2"], seed=0, device=device, allow=frozenset()).eval()
        model.for_inference(torch.bfloat16)
        texts = [" ".join(str(7 * i + j) for j in range(8 if context.tiny else 32)) for i in range(prompts)]

        def generate(n: int) -> float:
            return best_seconds(
                lambda: generate_batch(
                    model,
                    IdsTokenizer(vocab_size=VOCAB["gpt2"]),
                    texts,
                    max_new_tokens=n,
                    sampling=Sampling(temperature=0),
                    autocast=partial(autocast, device, "bf16"),
                ),
                context,
                repeats=3,
            )

        new = 8 if context.tiny else 128
        generate(2)
        return {"tokens_per_s": prompts * (new - 1) / (generate(new) - generate(1))}

    return measure


def resume(context: Context) -> Figures:
    """``verify_resume`` on this device: kill, resume, compare."""
    tinyllm(  # exits with 1 if anything differs
        "-m",
        "tinyllm.verify_resume",
        *TINY,
        *data_settings(context, "gpt2"),
        "trainer.eval_tokens=2048",
        "trainer.max_steps=20",
        "trainer.batch_size=2",
        f"trainer.device={context.device}",
        "trainer.deterministic=true",
        f"out={context.work / 'resume'}",
    )
    return {"exact": True}


COMPILED = "trainer.compile.enabled=true"
MLA, MOE = ("attn=mla",), ("moe=aux_free", "ffn=swiglu")
PARTS = [
    Part("machine", 30, machine),
    Part("tests", 90, gpu_tests),
    Part("gpt2 compiled", 90, training("gpt2", COMPILED)),
    Part("gpt2 plain loop", 75, plain_loop("gpt2")),
    Part("large compiled", 120, training("large", COMPILED, steps=20)),
    Part("decode 1", 40, decoding(1)),
    Part("decode 8", 40, decoding(8)),
    Part("decode 64", 40, decoding(64)),
    Part("gpt2 eager", 45, training("gpt2")),
    Part("medium mla compiled", 90, training("medium", *MLA, COMPILED)),
    Part("medium moe compiled", 90, training("medium", *MOE, COMPILED)),
    Part("resume", 60, resume),
    Part("large eager", 75, training("large", steps=20)),
    Part("large plain loop", 90, plain_loop("large")),
    Part("medium compiled", 75, training("medium", COMPILED)),
    Part("medium eager", 45, training("medium")),
    Part("medium plain loop", 60, plain_loop("medium")),
    Part("medium mla eager", 45, training("medium", *MLA)),
    Part("medium moe eager", 45, training("medium", *MOE)),
    Part("medium fp16", 45, training("medium", "trainer.precision=fp16")),
    Part("medium adamw8bit", 45, training("medium", "optimizer=adamw8bit")),
    Part("medium fsdp", 60, training("medium", "strategy=fsdp", "strategy.nproc_per_node=1")),
    Part("medium muon", 45, training("medium", "optimizer=muon")),
]
"""In order of worth: what a person with little time learns first stands first."""
