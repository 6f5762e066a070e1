"""The expected duration: FLOPs of the run over the median FLOP/s of like runs on this machine and device."""

import socket
from pathlib import Path
from typing import Any

from tinyllm.studio.cost_text import source_of, texts_of
from tinyllm.studio.report import Figures
from tinyllm.studio.speed import PastRun, expected

HERE = socket.gethostname()


def figures(**more: Any) -> Figures:
    known = {"parameters": 1000, "active_parameters": 500, "flops_per_token": 6000, "memory_bytes": 2_000_000}
    known |= {"cache_bytes_per_token": 100, "context": 64, "vocabulary": 256, "tokens_per_step": 512}
    return Figures(**{**known, "device": "cpu", "steps": 10, "tokens": 5120, **more})


def past(name: str, flops: float, speed: float, *, host: str = HERE, device: str = "cpu") -> PastRun:
    return PastRun(path=Path(name), host=host, device=device, flops_per_token=flops, tokens_per_s=speed)


def test_the_nearest_runs_decide() -> None:
    runs = [
        past("far", 6000 * 4.1, 1.0),
        past("elsewhere", 6000, 1.0, host="other"),
        past("gpu", 6000, 1.0, device="cuda"),
        past("a", 6000, 100.0),  # 600,000 FLOP/s
        past("b", 3000, 100.0),  # 300,000
        past("c", 12_000, 100.0),  # 1,200,000
        past("d", 6000 * 3.9, 1.0),
    ]
    found = expected(figures(), runs)
    assert found is not None and [run.path.name for run in found.runs] == ["a", "b", "c"]
    assert found.seconds == 5120 * 6000 / 600_000
    assert expected(figures(), runs[:3]) is None and expected(figures(tokens=None), runs) is None
    assert texts_of(figures(), found)["Time here"] == "about 0:51"
    assert source_of(found) == "time: training alone, at the speed of a and 2 more"


def test_what_is_not_known_is_said() -> None:
    shown = texts_of(figures(tokens=None, steps=None), None)
    assert shown["Time here"] == "no earlier run of like size" and shown["Compute"] == shown["Steps"] == "–"
    assert shown["Epochs"] == "known once the data is prepared"
    shown = texts_of(figures(epochs=2.5), None)
    assert shown["Parameters"] == "1.00k (500 active)" and shown["Cache"] == "6.40 kB for 64 tokens"
    assert shown["Tokens per parameter"] == "5.12" and shown["Epochs"] == "2.5" and shown["Compute"] == "30.7 MFLOP"
