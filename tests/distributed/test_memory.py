"""A sharded model is never complete in one process, not even during initialization."""

import subprocess
import sys
from pathlib import Path

import pytest

BUILD = """
import resource, sys
import torch, torch.distributed.fsdp, torch.distributed.tensor
import tinyllm
from tinyllm.programs.builders import build_model
from tinyllm.training.distributed.fsdp import FSDP

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

cpu = torch.device("cpu")
cfg = tinyllm.compose("model=medium")
strategy = FSDP(nproc_per_node=None, gpus_per_job=None, reshard_after_forward=True)
with strategy.running(cpu, backend="gloo", timeout_s=60):
    place = strategy.placer(cpu, torch.float32)
    before = peak()
    model = build_model(cfg, vocab_size=256, seed=0, device=cpu, allow=frozenset(), place=place)
    grown = peak() - before
    whole = sum(parameter.numel() * 4 for parameter in model.parameters())
    sys.stdout.write(f"{grown / whole}\\n")
    sys.stdout.flush()
"""


@pytest.mark.slow
def test_each_of_four_ranks_needs_about_a_quarter_of_the_memory(tmp_path: Path) -> None:
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shares = [float(word) for word in done.stdout.split()]
    assert len(shares) == 4
    assert max(shares) < 0.75  # a quarter, a block at a time besides, and what the allocator keeps
