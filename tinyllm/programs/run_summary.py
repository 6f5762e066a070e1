"""The figures and notes that the start of a run shows."""

from pathlib import Path

from tinyllm.config.learning_rates import followed_rule, origin_of_rate
from tinyllm.data.batch import TOKENS
from tinyllm.data.run_data import masks_targets, mean_tokens, n_tokens
from tinyllm.programs.builders import optimizer_bytes, plain
from tinyllm.programs.run_plan import RunPlan
from tinyllm.training.callbacks import OptimizerGroup, RunInfo
from tinyllm.training.flops import training_flops
from tinyllm.training.memory_estimate import activation_bytes, trained_bytes
from tinyllm.utils.device import compute_dtype, describe_device
from tinyllm.utils.text import shown_path


def tokenizer_name(plan: RunPlan) -> str:
    """The option that was chosen, or the kind of the tokenizer that came with the weights."""
    kind, option = plan.data.tokenizer.kind, plan.invocation.choices.get("tokenizer", "custom")
    return option if getattr(plan.corpus, "gives", TOKENS) == TOKENS else kind


def run_info(plan: RunPlan, groups: list[OptimizerGroup], peak: float | None, run_dir: Path, *, tokens: int) -> RunInfo:
    """The summary shown at the start of a run, counted on the plan's model.

    Args:
        groups: of the optimizer.
        peak: FLOP/s of all ranks together; None: not known.
        tokens: training tokens consumed before this start.
    """
    batch, cfg, model = plan.batch, plan.cfg, plan.meta_model
    counts, dtype = model.parameter_counts(), compute_dtype(plan.precision)
    activations = activation_bytes(
        model, batch_size=batch.batch_size, seq_len=batch.seq_len, device=plan.device.type, dtype=dtype
    )
    kernels = [block.attn.chosen_kernel(plan.device.type, dtype, batch.seq_len) for block in model.layers()]
    if model.document_mask:
        one_by_one = [block.attn.has_data_dependent_shapes(plan.device) for block in model.layers()]
        names = zip(kernels, one_by_one, strict=True)
        kernels = [f"{name} by document" if own else "FlexAttention" for name, own in names]
    ranks = batch.world_size if plan.strategy.is_sharded else 1
    optimizer = optimizer_bytes(cfg, model, allow=plan.invocation.allow)
    has_reference = plan.reference is not None
    trained = trained_bytes(
        counts.total, optimizer, trained=counts.trained, averaged=cfg.ema.enabled, reference=has_reference, ranks=ranks
    )
    answers, longest = plan.meta_objective.answers_per_sample
    per_sample = answers * longest or mean_tokens(plan.sampler, seq_len=batch.seq_len)
    epoch_tokens = plan.sampler.windows_per_epoch * per_sample
    start, lengths, horizon = plan.start_step, plan.lengths, plan.horizon
    full_rows = batch.sequences * (lengths.total(horizon.steps) - lengths.total(start - horizon.shift))
    planned_tokens = tokens + round(full_rows * per_sample / batch.seq_len)
    notes = list(plan.notes)
    if start < lengths.full_from:
        notes.append(
            f"sequences of {lengths.at(start)} tokens at first, of {batch.seq_len} from step {lengths.full_from + 1} on"
        )
    if counts.trained < counts.total and plan.init_from is not None:
        share = f"{counts.trained:,} of {counts.total:,} parameters ({counts.trained / counts.total:.2%})"
        notes.append(f"LoRA trains {share}; the others stay those of {shown_path(plan.init_from.path)}")
    elif plan.init_from is not None and (rule := followed_rule(cfg)) is not None:
        notes.append(
            "the learning rate is that for training from random weights; to keep more of what the weights of init_from"
            f" have learned, set a smaller one, e.g. optimizer.lr={rule.rate / 10:g}"
        )
    if not cfg.checkpoint.enabled:
        notes.append("nothing is saved: checkpoint.enabled=false")
    if not cfg.trainer.eval_every:
        notes.append("no evaluation: trainer.eval_every=0")
    return RunInfo(
        run_dir=run_dir,
        device=describe_device(plan.device),
        precision=plan.precision,
        attention_kernel=", ".join(dict.fromkeys(kernels)),
        world_size=batch.world_size,
        parameters=counts.total,
        active_parameters=counts.active,
        embedding_parameters=counts.embedding,
        tied=model.head is None and model.score is None,
        writes_text=model.score is None,
        tokenizer=tokenizer_name(plan),
        vocab_size=model.vocab_size,
        dataset=plan.invocation.choices.get("dataset", "custom"),
        train_tokens=n_tokens(plan.data, "train"),
        val_tokens=n_tokens(plan.data, "val"),
        batch_size=batch.batch_size,
        grad_accum_steps=batch.grad_accum_steps,
        seq_len=batch.seq_len,
        tokens_per_step=batch.tokens,
        max_steps=plan.max_steps,
        start_step=start,
        start_tokens=tokens,
        planned_tokens=planned_tokens,
        rows_vary=masks_targets(plan.data) and not cfg.curriculum.enabled,
        epochs=planned_tokens / epoch_tokens,
        flops_per_token=training_flops(model, plan.sampler)(batch.seq_len),
        peak_flops=peak,
        memory_bytes=trained + activations,
        learning_rate=cfg.optimizer.lr,
        learning_rate_from=origin_of_rate(cfg),
        optimizer_groups=groups,
        notes=notes,
        config=plain(cfg),
    )
