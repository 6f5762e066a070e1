"""A simulated run, event by event. ``python -m tests.support.fake_run`` shows it in the console."""

import math
import time
from collections.abc import Callable
from pathlib import Path

from tinyllm.training.callbacks import Callback, OptimizerGroup, Outcome, RunInfo

SAMPLE = "The module defines\n\ta class \x1b[31mthat\x1b[0m returns the [bold]string[/bold] object.\r\x07"


def info(run_dir: Path, *, max_steps: int = 400, start_step: int = 0) -> RunInfo:
    return RunInfo(
        run_dir=run_dir,
        device="cpu (2 threads)",
        precision="bf16",
        attention_kernel="matmul",
        world_size=1,
        parameters=804_480,
        active_parameters=804_480,
        embedding_parameters=12_416,
        tied=True,
        tokenizer="char",
        vocab_size=97,
        dataset="pydocs",
        train_tokens=3_104_221,
        val_tokens=341_007,
        batch_size=64,
        grad_accum_steps=1,
        seq_len=128,
        tokens_per_step=8192,
        max_steps=max_steps,
        start_step=start_step,
        start_tokens=start_step * 8192,
        planned_tokens=max_steps * 8192,
        epochs=max_steps * 8192 / 3_104_221,
        flops_per_token=5_020_000,
        peak_flops=9e11,
        memory_bytes=212_000_000,
        learning_rate=0.02,
        learning_rate_from="rule for muon, 0.02·128/d_model",
        optimizer_groups=[
            OptimizerGroup(name="matrices", tensors=24, parameters=786_432, weight_decay=0.1),
            OptimizerGroup(name="embeddings, norms, biases", tensors=10, parameters=18_048, weight_decay=0.0),
        ],
        notes=["3 characters of the validation text never occur in training: they become <unk>"],
    )


def tell(
    callback: Callback,
    run_dir: Path,
    *,
    until: int = 400,
    status: str = "finished",
    pause: Callable[[], None] = lambda: None,
) -> None:
    """Every kind of event, up to step ``until`` of 400."""
    callback.on_start(info(run_dir))
    best, best_step = math.inf, None
    for step in range(10, until + 1, 10):
        pause()
        loss = 1.5 + 3 * math.exp(-step / 80) + 0.05 * math.sin(step)
        callback.on_log(
            step,
            {
                "train/loss": loss,
                "train/lr": 1e-3 * (1 - step / 440),
                "train/grad_norm": 0.8,
                "train/tokens": step * 8192.0,
                "speed/tokens_per_s": 60_000.0,
                "speed/mfu": 0.33,
                "memory/peak_bytes": 431_000_000.0,
            },
        )
        if step % 100 == 0:
            val = loss + 0.05 if step != 300 else 9.0
            if val < best:
                best, best_step = val, step
            callback.on_evaluate(
                step,
                {"val/loss": val, "val/ppl": math.exp(val), "val/bpb": val / math.log(2)},
                is_best=best_step == step,
            )
            callback.on_sample(step, SAMPLE)
            callback.on_checkpoint(step, run_dir / "checkpoints" / f"step-{step:06d}", reason="periodic")
    callback.on_message("a step was skipped: the loss was not finite")
    callback.on_end(
        Outcome(
            status=status,
            step=until,
            tokens=until * 8192,
            seconds=61.5,
            run_dir=run_dir,
            metrics={"val/loss": 1.6},
            best_step=best_step,
            best_val_loss=best if best_step else None,
            reason="" if status == "finished" else "SIGINT",
        )
    )


if __name__ == "__main__":
    from tinyllm.loggers.console import console_for

    tell(console_for(), Path("outputs/2026-11-20/18-50_nano_a1b2"), pause=lambda: time.sleep(0.2))
