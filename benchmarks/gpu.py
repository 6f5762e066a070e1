"""Ten minutes on one GPU: tests, training speed, memory, decoding and resume, in one table and one JSON file.

    python benchmarks/gpu.py [--json gpu.json] [--minutes 10] [--only NAME …] [--device cuda] [--tiny]

Each part runs in its own process under a time limit, in order of worth: a part that fails, crashes, hangs or does not
apply becomes one line of the results and the next part starts. After ``--minutes`` the remaining parts are listed as
not run; ``--only`` with their names measures them later. The parts are in ``benchmarks/gpu_parts.py``.

Training parts run ``python -m tinyllm.train`` on random tokens without evaluations, samples or checkpoints and report
the median tokens/s of the second half of the records, so compilation and warm-up are left out. The batch size is the
largest power of two whose estimated memory fits into 80 % of the GPU's, at most 65,536 tokens, and half of that as
often as memory runs out. ``mfu`` is relative to the dense bf16 peak in the data sheet, ``of_product`` to the bf16
matrix product that the first part measures. ``plain loop`` trains the same sizes with a minimal GPT in the style of
nanoGPT (``benchmarks/plain_gpt.py``), compiled, with fused AdamW, and the same batch.

``--device cpu --tiny`` tries every part with sizes that take seconds, which is how the tests run this script.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from gpu_parts import PARTS, ROOT, TINY_VOCAB, Context, Figures, Part

NOT_RUN: Figures = {"error": "not run: the time was over"}
BUSY = 5
"""With tiny sizes, parts are given this many times their limit: tests run on a machine that does other things."""
COLUMNS = {"tokens_per_s": "tokens/s", "mfu": "MFU", "of_product": "of product", "batch": "batch", "peak_gb": "peak GB"}
"""Figures with a column of their own; the others follow by name."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="results, rewritten after every part")
    parser.add_argument("--minutes", type=float, default=10, help="do not start another part after this time")
    parser.add_argument("--limit", type=float, help="most seconds of each part, if less than its own limit")
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
        write_tokens(context.data, rows=64 if options.tiny else 2048, vocab=TINY_VOCAB if options.tiny else 32000)
        for part in chosen:
            left = options.minutes * 60 - (time.monotonic() - started)
            own = part.limit * (BUSY if options.tiny else 1)
            limit = min(own, left, options.limit or own)
            print(f"{part.name} …", file=sys.stderr, flush=True)
            results[part.name] = run_part(part, context, limit=limit) if left > 0 else NOT_RUN
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    return 0


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
            env=os.environ | {"TINYLLM_CACHE": str(context.work / "cache")},
            start_new_session=True,  # so that a part that hangs is killed with everything it started
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # what left the group may keep the pipe open
                process.communicate(timeout=5)
            return {"error": f"stopped after {limit:.0f} s"}
    seconds = round(time.monotonic() - started, 1)
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else "no message"
        died = f"killed by signal {-process.returncode}: " if process.returncode < 0 else ""
        return {"error": died + last, "seconds": seconds}
    try:
        return {**json.loads(output.splitlines()[-1]), "seconds": seconds}
    except (IndexError, ValueError):
        return {"error": "printed no figures", "seconds": seconds}


def table(results: dict[str, Figures]) -> str:
    """All results, a line for each part."""
    rows = [["", *COLUMNS.values(), ""]]
    for name, figures in results.items():
        others = (f"{key} {shown(value)}" for key, value in figures.items() if key not in COLUMNS)
        rows.append([name, *(shown(figures.get(key, "")) for key in COLUMNS), "  ".join(others)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for first, *figures, rest in rows:
        cells = (cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells, rest]).rstrip())
    return "\n".join(lines)


def shown(value: object) -> str:
    """A figure with the digits that matter."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def write_tokens(path: Path, *, rows: int, vocab: int) -> None:
    """Write random token ids as the data set of all training parts; they fit into every vocabulary."""
    import numpy as np

    np.save(path, np.random.default_rng(0).integers(vocab, size=(rows, 4097), dtype=np.int32))


if __name__ == "__main__":
    sys.exit(main())
