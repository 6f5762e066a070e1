"""Steps of training on a CUDA device that does not exist: what would wait for it, and which shapes do not fit.

``python -m tests.support.fake_cuda LIBRARY`` reads cases from its input, one JSON list of settings per line, takes a
step of training with each, and answers with a JSON line: what went wrong, "" for nothing. It is a process of its own,
because the library (``fake_cuda.cpp``) must be loaded before torch.

Tensors are fake: they have shapes, dtypes and devices, and every operation is dispatched as on a GPU, without data. So
an operation that needs a value on the host, or whose shape depends on values, cannot be computed, and one between
tensors on different devices is refused.
"""

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_suffix(".cpp")


class Unavailable(Exception):
    """The library cannot be built here."""


def torch_folder() -> Path:
    """Where torch is installed, without importing it."""
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def built(folder: Path) -> Path:
    """The library, compiled into a folder.

    Raises:
        Unavailable: there is no compiler, or torch has no headers that it understands.
    """
    library, torch = folder / "fake_cuda.so", torch_folder()
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{torch / 'include'}", str(SOURCE)]
    try:
        subprocess.run(
            [*command, f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", "-o", str(library)],
            check=True,
            capture_output=True,
            timeout=120,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(str(error)) from error
    return library


def problems(library: Path, cases: Sequence[Sequence[str]]) -> list[str]:
    """What goes wrong in a step with each of these settings; "" for nothing."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.support.fake_cuda", str(library)],
        input="\n".join(map(json.dumps, cases)),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()]


def main(library: str) -> None:
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_folder() / "lib" / name), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(library)
    from tests.support.fake_cuda_step import problem  # imports torch

    for line in sys.stdin:
        print(json.dumps(problem(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
