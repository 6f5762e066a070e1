"""Run directories as a run leaves them, written without training."""

import json
from pathlib import Path
from typing import Any


def run_folder(path: Path, *, status: str = "finished", records: int = 0, config: str = "", **facts: Any) -> Path:
    """A run directory with so many records; ``facts`` are added to its ``run.json``."""
    path.mkdir(parents=True)
    info = {"max_steps": 100, "planned_tokens": 10_000, "parameters": 804_480, "dataset": "pydocs"}
    result = {"step": records, "seconds": 1.5, "best_val_loss": 1.0} if status == "finished" else None
    content = {"status": status, "info": info, "result": result, "choices": {"model": "nano"}, "facts": {}}
    (path / "run.json").write_text(json.dumps(content | facts))
    (path / "config.yaml").write_text(config or "seed: 1\noptimizer:\n  lr: 0.001\n")
    (path / "metrics.jsonl").write_text("".join(record(step) for step in range(1, records + 1)))
    return path


def record(step: int, **values: Any) -> str:
    """A line of ``metrics.jsonl``."""
    axes = {"step": step, "tokens": step * 100, "flops": step * 1000, "seconds": step / 2}
    metrics = {"train/loss": 2 - step / 100, "train/tokens": step * 100, "speed/tokens_per_s": 50.0}
    return json.dumps(axes | metrics | values) + "\n"
