"""What a run is, in figures and words, before its first step."""

from pathlib import Path
from typing import Any

import torch

from tinyllm.programs.builders import build_model, optimizer_bytes, plain
from tinyllm.programs.run_plan import RunPlan
from tinyllm.training.callbacks import OptimizerGroup, RunInfo
from tinyllm.training.memory_estimate import activation_bytes, trained_bytes
from tinyllm.utils.device import compute_dtype, describe_device


def run_info(
    planned: RunPlan,
    model: Any,
    groups: list[OptimizerGroup],
    peak: float | None,
    run_dir: Path,
    *,
    tokens: int,
) -> RunInfo:
    """What the start of the run shows.

    Args:
        tokens: what it was trained on before.
    """
    batch, cfg = planned.batch, planned.cfg
    counts = model.parameter_counts()
    dtype = compute_dtype(planned.precision)
    sketch = build_model(
        cfg, vocab_size=model.vocab_size, seed=0, device=torch.device("meta"), allow=planned.invocation.allow
    )
    activations = activation_bytes(
        sketch,
        batch_size=batch.batch_size,
        seq_len=batch.seq_len,
        device=planned.device.type,
        dtype=dtype,
    )
    kernels = (block.attn.chosen_kernel(planned.device.type, dtype, batch.seq_len) for block in model.layers())
    ranks = batch.world_size if planned.strategy.is_sharded else 1
    kept = optimizer_bytes(cfg, sketch, allow=planned.invocation.allow)
    trained = trained_bytes(counts.total, kept, averaged=cfg.ema.enabled, ranks=ranks)
    epoch = planned.sampler.windows_per_epoch * batch.seq_len
    start, lengths = planned.start_step, planned.lengths
    horizon = planned.horizon
    planned_tokens = tokens + batch.sequences * (lengths.total(horizon.steps) - lengths.total(start - horizon.shift))
    notes = list(planned.notes)
    if start < lengths.full_from:
        notes.append(
            f"sequences of {lengths.at(start)} tokens at first, of {batch.seq_len} from step {lengths.full_from + 1} on"
        )
    if not cfg.checkpoint.enabled:
        notes.append("nothing is saved: checkpoint.enabled=false")
    if not cfg.trainer.eval_every:
        notes.append("no evaluation: trainer.eval_every=0")
    return RunInfo(
        run_dir=run_dir,
        device=describe_device(planned.device),
        precision=planned.precision,
        attention_kernel=", ".join(dict.fromkeys(kernels)),
        world_size=batch.world_size,
        parameters=counts.total,
        active_parameters=counts.active,
        embedding_parameters=counts.embedding,
        tied=model.head is None,
        tokenizer=planned.invocation.choices.get("tokenizer", "custom"),
        vocab_size=model.vocab_size,
        dataset=planned.invocation.choices.get("dataset", "custom"),
        train_tokens=planned.data.train.n_tokens,
        val_tokens=planned.data.val.n_tokens,
        batch_size=batch.batch_size,
        grad_accum_steps=batch.grad_accum_steps,
        seq_len=batch.seq_len,
        tokens_per_step=batch.tokens,
        max_steps=planned.max_steps,
        start_step=start,
        start_tokens=tokens,
        planned_tokens=planned_tokens,
        epochs=planned_tokens / epoch,
        flops_per_token=3 * model.flops_per_token(batch.seq_len),
        peak_flops=peak,
        memory_bytes=trained + activations,
        optimizer_groups=groups,
        notes=notes,
        config=plain(cfg),
    )
