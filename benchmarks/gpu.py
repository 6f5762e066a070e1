"""Ten minutes on one GPU: tests, training speed, memory, decoding and resume, in one table and one JSON file.

    python benchmarks/gpu.py [--json gpu.json] [--minutes 10] [--only NAME …] [--device cuda] [--tiny]

Each part runs in its own process under a time limit, in order of worth: a part that fails, hangs or does not apply
becomes one line of the results and the next part starts. After ``--minutes`` the remaining parts are listed as not run.

Training parts run ``python -m tinyllm.train`` on random tokens without evaluations, samples or checkpoints and report
the median tokens/s of the second half of the records, so compilation and warm-up are left out. The batch size is the
largest power of two whose estimated memory (``tinyllm.describe``) fits into 80 % of the GPU's. The MFU is relative to
the bf16 matrix product that the first part measures. ``plain loop`` trains the same sizes with a minimal GPT in the
style of nanoGPT (``benchmarks/plain_gpt.py``), compiled, with fused AdamW, and the same batch.

``--device cpu --tiny`` tries every part with sizes that take seconds, which is how the tests run this script.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VOCAB = 50257
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="results, rewritten after every part")
    parser.add_argument("--minutes", type=float, default=10, help="do not start another part after this time")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run the parts whose names contain one of these")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU trains in seconds")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        context = Context(device=options.device, tiny=options.tiny, work=options.work)
        part = next(part for part in PARTS if part.name == options.part)
        print(json.dumps(part.measure(context)))
        return 0
    chosen = [part for part in PARTS if not options.only or any(name in part.name for name in options.only)]
    if not chosen:
        parser.error(f"--only {' '.join(options.only)}: no such part; there are {', '.join(p.name for p in PARTS)}")
    results: dict[str, Figures] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tinyllm-gpu-", ignore_cleanup_errors=True) as work:
        context = Context(device=options.device, tiny=options.tiny, work=Path(work))
        write_tokens(context.data, rows=64 if options.tiny else 2048)
        for part in chosen:
            left = options.minutes * 60 - (time.monotonic() - started)
            results[part.name] = run_part(part, context, limit=min(part.limit, left)) if left > 0 else NOT_RUN
            print(f"{part.name:32} {shown(results[part.name])}", flush=True)
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


NOT_RUN: Figures = {"error": "not run: the time was over"}


def run_part(part: Part, context: Context, *, limit: float) -> Figures:
    """Run a part in its own process group; returns its figures, or ``{"error": …}`` if it fails or takes too long."""
    command = [sys.executable, __file__, "--part", part.name, "--device", context.device, "--work", str(context.work)]
    log = context.work / f"{part.name.replace(' ', '_')}.log"
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*command, *(["--tiny"] if context.tiny else [])],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            start_new_session=True,  # so that a part that hangs is killed with everything it started
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return {"error": f"stopped after {limit:.0f} s"}
    seconds = round(time.monotonic() - started, 1)
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return {"error": lines[-1] if lines else f"exit code {process.returncode}", "seconds": seconds}
    return {**json.loads(output.splitlines()[-1]), "seconds": seconds}


def shown(figures: Figures) -> str:
    """The figures of a part as one line."""
    return "  ".join(
        f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
    )


def write_tokens(path: Path, *, rows: int) -> None:
    """Write random token ids as the data set of all training parts."""
    import numpy as np

    np.save(path, np.random.default_rng(0).integers(VOCAB, size=(rows, 4097), dtype=np.int32))


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


def training(*settings: str, steps: int = 30) -> Callable[[Context], Figures]:
    """A part that trains with these settings and reports speed and memory."""

    def measure(context: Context) -> Figures:
        chosen = [one for one in settings if not (context.tiny and one.startswith(("model=", "trainer.compile")))]
        # The plain loop trains with AdamW.
        optimizer = [] if any(one.startswith("optimizer=") for one in settings) else ["optimizer=adamw"]
        common = [*optimizer, *chosen, *(TINY if context.tiny else []), *data_settings(context)]
        precision = () if any(one.startswith("trainer.precision") for one in settings) else ("trainer.precision=bf16",)
        batch = 2 if context.tiny else batch_size(context, [*common, *precision])
        n_steps = 6 if context.tiny else steps
        run = Path(tempfile.mkdtemp(dir=context.work))
        tinyllm(
            *TRAIN,
            *common,
            *precision,
            f"trainer.batch_size={batch}",
            f"trainer.max_steps={n_steps}",
            f"trainer.log_every={max(1, n_steps // 10)}",
            "trainer.eval_every=0",
            "trainer.sample_every=0",
            "checkpoint.enabled=false",
            f"trainer.device={context.device}",
            f"run.dir={run / 'run'}",
        )
        records = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
        timed = [record for record in records if "speed/tokens_per_s" in record]
        speed = statistics.median(record["speed/tokens_per_s"] for record in timed[len(timed) // 2 :])
        flops = described(context, [*common, *precision, f"trainer.batch_size={batch}"])["FLOPs per token"]["train"]
        return {
            "batch": batch,
            "tokens_per_s": speed,
            "mfu": speed * flops / peak_flops(context),
            "peak_gb": max(record.get("memory/peak_bytes", 0) for record in timed) / 1e9,
        }

    return measure


TINY = ["model=pico", "trainer.seq_len=32", "model.max_seq_len=32"]


def data_settings(context: Context) -> list[str]:
    """The random tokens as data set, with GPT-2's vocabulary."""
    return ["dataset=npy", f"dataset.path={context.data}", f"tokenizer.vocab_size={VOCAB}"]


def tinyllm(*command: str) -> str:
    """Run one of our programs; returns its output.

    Raises:
        SystemExit: it failed; the message is its last line.
    """
    finished = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    if finished.returncode:
        raise SystemExit((finished.stderr or finished.stdout).strip().splitlines()[-1])
    return finished.stdout


def described(context: Context, settings: list[str]) -> Figures:
    """What ``tinyllm.describe --json`` says of a composition."""
    figures: Figures = json.loads(tinyllm("-m", "tinyllm.describe", *settings, "--json"))
    return figures


def batch_size(context: Context, settings: list[str]) -> int:
    """The largest power of two of sequences whose estimated memory fits into 80 % of the GPU's."""
    total = json.loads((context.work / "machine.json").read_text(encoding="utf-8"))["memory_gb"] * 1e9
    one, two = (described(context, [*settings, f"trainer.batch_size={n}"])["memory"]["together"] for n in (1, 2))
    fits = (0.8 * total - (2 * one - two)) / (two - one)  # the estimate is linear in the batch
    return max(1, 2 ** (min(int(fits), 256).bit_length() - 1)) if fits >= 1 else 1


def peak_flops(context: Context) -> float:
    """Operations per second of the bf16 matrix product that ``machine`` measured."""
    measured = json.loads((context.work / "machine.json").read_text(encoding="utf-8"))
    return float(measured["bfloat16_tflops"]) * 1e12


def plain_loop(size: str) -> Callable[[Context], Figures]:
    """A part that trains the same size with a minimal GPT instead of tinyllm."""

    def measure(context: Context) -> Figures:
        batch = 2 if context.tiny else batch_size(context, [f"model={size}", *data_settings(context)])
        command = [sys.executable, str(ROOT / "benchmarks" / "plain_gpt.py"), size, str(batch), context.device]
        finished = subprocess.run([*command, *(["tiny"] if context.tiny else [])], capture_output=True, text=True)
        if finished.returncode:
            raise SystemExit(finished.stderr.strip().splitlines()[-1])
        figures: Figures = json.loads(finished.stdout.splitlines()[-1])
        return {"batch": batch, **figures}

    return measure


def decoding(prompts: int) -> Callable[[Context], Figures]:
    """A part that generates with the gpt2 shape and random weights, greedy, bf16."""

    def measure(context: Context) -> Figures:
        from functools import partial

        import torch

        import tinyllm
        from tinyllm.inference.generator import generate_batch
        from tinyllm.inference.sampling import Sampling
        from tinyllm.programs.builders import build_model
        from tinyllm.tokenizers.ids import IdsTokenizer
        from tinyllm.utils.device import autocast

        device = torch.device(context.device)
        cfg = tinyllm.compose("model=pico" if context.tiny else "model=gpt2", "tokenizer=ids")
        model = build_model(cfg, vocab_size=VOCAB, seed=0, device=device, allow=frozenset()).eval()
        model.for_inference(torch.bfloat16)
        texts = [" ".join(str(7 * i + j) for j in range(8 if context.tiny else 32)) for i in range(prompts)]

        def generate(n: int) -> float:
            return best_seconds(
                lambda: generate_batch(
                    model,
                    IdsTokenizer(vocab_size=VOCAB),
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
        "trainer.max_steps=20",
        "trainer.batch_size=2",
        f"trainer.device={context.device}",
        "trainer.deterministic=true",
        f"out={context.work / 'resume'}",
    )
    return {"exact": True}


COMPILED = "trainer.compile.enabled=true"
PARTS = [
    Part("machine", 40, machine),
    Part("tests", 90, gpu_tests),
    Part("gpt2 compiled", 120, training("model=gpt2", COMPILED)),
    Part("gpt2 plain loop", 90, plain_loop("gpt2")),
    Part("gpt2 eager", 60, training("model=gpt2")),
    Part("large compiled", 180, training("model=large", COMPILED, steps=20)),
    Part("medium compiled", 120, training("model=medium", COMPILED)),
    Part("decode 1", 60, decoding(1)),
    Part("decode 8", 60, decoding(8)),
    Part("decode 64", 60, decoding(64)),
    Part("medium mla", 90, training("model=medium", "attn=mla")),
    Part("medium moe", 90, training("model=medium", "moe=aux_free", "ffn=swiglu")),
    Part("medium eager", 60, training("model=medium")),
    Part("large eager", 120, training("model=large", steps=20)),
    Part("medium fp16", 60, training("model=medium", "trainer.precision=fp16")),
    Part("medium adamw8bit", 60, training("model=medium", "optimizer=adamw8bit")),
    Part("medium fsdp", 90, training("model=medium", "strategy=fsdp", "strategy.nproc_per_node=1")),
    Part("resume", 120, resume),
    Part("medium muon", 60, training("model=medium", "optimizer=muon")),
]
"""In order of worth: what a person with little time learns first stands first."""

if __name__ == "__main__":
    sys.exit(main())
