"""Summary of a run at its start and end, as rows of label and text; the displays decide how they look."""

from collections.abc import Sequence

from tinyllm.training.callbacks import Outcome, RunInfo
from tinyllm.utils.text import command, duration, quantity, short, shown_path

Rows = list[tuple[str, str]]


def start_rows(info: RunInfo) -> Rows:
    """Model, data, batch, horizon and memory of a run that is about to start."""
    ranks = f", {info.world_size} ranks" if info.world_size > 1 else ""
    size = f"{short(info.parameters)} parameters ({info.parameters:,})"
    if info.active_parameters != info.parameters:
        size += f", {short(info.active_parameters)} active"
    tying = "tied to the output" if info.tied else "not tied to the output" if info.writes_text else "with a score head"
    accumulation = f" × {info.grad_accum_steps} accumulated" if info.grad_accum_steps > 1 else ""
    parallel = f" × {info.world_size} ranks" if info.world_size > 1 else ""
    rows = [
        ("device", f"{info.device}{ranks}, {info.precision}, attention kernel {info.attention_kernel}"),
        ("model", f"{size}, {short(info.embedding_parameters)} of them embedding, {tying}"),
        ("compute", f"{quantity(info.flops_per_token, 'FLOP')} per token, forward and backward"),
        (
            "data",
            f"{info.dataset}: {info.train_tokens:,} training tokens, {info.val_tokens:,} validation tokens",
        ),
        ("tokenizer", f"{info.tokenizer}, {info.vocab_size:,} entries"),
        (
            "batch",
            f"{info.batch_size} × {info.seq_len} tokens{accumulation}{parallel}"
            f" = {info.tokens_per_step:,} tokens per step",
        ),
        (
            "horizon",
            f"{info.max_steps:,} steps = {short(info.planned_tokens)} tokens = {info.epochs:.3g} epochs",
        ),
        ("memory", f"about {quantity(info.memory_bytes, 'B')}: weights, gradients, optimizer, activations"),
    ]
    rows += [
        (
            "optimizer" if index == 0 else "",
            f"{group.name}: {group.parameters:,} parameters in {group.tensors}"
            f" tensor{'s' * (group.tensors != 1)}, weight decay {group.weight_decay:g}",
        )
        for index, group in enumerate(info.optimizer_groups)
    ]
    rows.append(("learning rate", f"{info.learning_rate:g}: {info.learning_rate_from}"))
    rows.append(("run", shown_path(info.run_dir)))
    if info.start_step:
        rows.append(("resumed", f"after step {info.start_step:,}"))
    rows += [("note", note) for note in info.notes]
    return rows


def end_rows(outcome: Outcome, *, max_steps: int, tokens_per_s: float | None, best_bpb: float | None) -> Rows:
    """Steps, tokens, time and best validation loss of a run that has ended.

    Args:
        best_bpb: bits per byte of the best evaluation, if this process saw it.
    """
    rows = [
        ("steps", f"{outcome.step:,} of {max_steps:,}"),
        ("tokens", f"{outcome.tokens:,}"),
        ("time", duration(outcome.seconds)),
    ]
    if tokens_per_s:
        rows.append(("tokens/s", f"{tokens_per_s:,.0f} (training alone)"))
    if outcome.best_val_loss is not None:
        bpb = f", {best_bpb:.4f} bits per byte" if best_bpb is not None else ""
        ppl = outcome.best_val_perplexity
        figures = f"{outcome.best_val_loss:.4f}{'' if ppl is None else f', perplexity {ppl:.4g}'}{bpb}"
        rows.append((f"best {outcome.best_metric.replace('/', ' ')}", f"{figures} (step {outcome.best_step:,})"))
    if outcome.reason and outcome.status != "finished":
        rows.append(("reason", outcome.reason))
    rows.append(("run", shown_path(outcome.run_dir)))
    if (outcome.run_dir / "curves.png").is_file():
        rows.append(("curves", shown_path(outcome.run_dir / "curves.png")))
    return rows


def next_commands(outcome: Outcome, *, max_steps: int, flags: Sequence[str] = (), writes_text: bool = True) -> Rows:
    """Shell commands to generate from, evaluate or continue the run; empty without a checkpoint.

    Args:
        flags: flags that every program needs for this run, such as ``--config-dir my_conf``.
        writes_text: whether the model can generate.
    """
    # Without checkpoints the run can neither generate nor resume.
    if not (outcome.has_checkpoint and (outcome.run_dir / "checkpoints").is_dir()):
        return []
    run = shown_path(outcome.run_dir)
    generate = [("generate", command("generate", *flags, f"run={run}"))] if writes_text else []
    if outcome.step < max_steps:
        return [*generate, ("resume", command("train", *flags, f"resume={run}"))]
    return [
        *generate,
        ("evaluate", command("evaluate", *flags, f"run={run}")),
        ("continue training", command("train", *flags, f"resume={run}", f"trainer.max_steps={2 * max_steps}")),
    ]
