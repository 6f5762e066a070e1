"""Facts about the machine that are determined before a run starts."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tinyllm.utils import device as hardware


@pytest.mark.parametrize(("speed", "most"), [(1e9, 6e8), (1e12, 2.5e10)])
def test_the_peak_of_a_slow_format_is_measured_with_small_products(
    speed: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that runs as if the machine did ``speed`` FLOPs per second; small products come first."""
    with FlopCounterMode(display=False) as done:
        overhead = itertools.count(0, 1e-9)
        monkeypatch.setattr(hardware.time, "perf_counter", lambda: done.get_total_flops() / speed + next(overhead))
        peak = hardware.peak_flops(torch.device("cpu"), "fp32")
        assert peak == pytest.approx(speed, rel=0.01)
        assert done.get_total_flops() < most


@pytest.mark.parametrize(("cpus", "asked", "wanted"), [(2, None, 2), (16, None, 4), (2, "4", 4)])
def test_no_more_threads_than_usable_cpus(
    cpus: int, asked: str | None, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container with a share of a large machine; a given number of threads stays."""
    threads = [4]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(hardware, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    hardware.pick_device("cpu")
    assert threads[-1] == wanted


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA A100-SXM4-80GB", 312),
     ("NVIDIA A10", 125), ("NVIDIA L40", 181), ("NVIDIA L40S", 362), ("NVIDIA L4", 121),
     ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA GeForce GTX 1080", None)],
)  # fmt: skip
def test_peak_of_a_gpu(name: str, tflops: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that contain others, such as L40 and L4, keep their own figures."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = hardware.peak_flops(torch.device("cuda"), "bf16")
    assert peak == (None if tflops is None else tflops * 1e12)
    assert hardware.peak_flops(torch.device("cuda"), "fp32") is None
