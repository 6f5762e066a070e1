"""``python -m tinyllm.describe model=large attn=gqa``: what a composition costs, without building it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tinyllm.config.cli import Invocation


def main() -> None:
    """Entry point of ``tinyllm-describe``."""
    from tinyllm.config.cli import run

    run("describe", _task)


def _task(cfg: "DictConfig", invocation: "Invocation") -> int:
    import json

    facts, notes = account(cfg, allow=invocation.allow)
    if invocation.json:
        print(json.dumps(facts | {"notes": notes}))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(
        show_header=False,
        title=f"{cfg.model._target_.rpartition('.')[2]} {invocation.choices['model']}",
        title_justify="left",
    )
    table.add_column("")
    table.add_column("", justify="right")
    for section, rows in facts.items():
        table.add_section()
        for name, value in rows.items():
            table.add_row(f"{section}: {name}", _shown(section, value))
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note)
    return 0


def _shown(section: str, value: "int | str") -> str:
    """A figure for people: exact where it is a count, with a prefix where it is memory."""
    from tinyllm.loggers.wording import quantity

    if isinstance(value, str):
        return value
    return quantity(value, "B") if section.startswith("memory") else f"{value:,}"


def account(cfg: "DictConfig", *, allow: frozenset[str] = frozenset()) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The figures of a composition, by section, and sentences on what was assumed. Nothing is allocated.

    Parameters are counted, FLOPs and cache bytes are the modules' own accounting; memory is for one micro-step of
    ``trainer.batch_size`` sequences with AdamW's two moments in fp32.

    Raises:
        UserError: sizes that do not go together.
    """
    import torch

    from tinyllm.assemble import PLACEHOLDER_VOCAB, build_model, open_corpus
    from tinyllm.data.prepare import cached
    from tinyllm.errors import UserError
    from tinyllm.nn.precision import auto_precision
    from tinyllm.training.hardware import pick_device
    from tinyllm.training.memory import activation_bytes
    from tinyllm.training.objective import AUTOCAST
    from tinyllm.training.plan import plan_batch

    notes = []
    vocab_size = cfg.model.vocab_size or cfg.tokenizer.get("vocab_size")
    if vocab_size is None:
        try:
            data = cached(*open_corpus(cfg, allow=allow))
        except UserError:
            data = None
        vocab_size = data.tokenizer.vocab_size if data else PLACEHOLDER_VOCAB
        if data is None:
            notes.append(
                f"a vocabulary of {PLACEHOLDER_VOCAB} is assumed: the data is not in the cache, prepare puts it there"
            )
    model: Any = build_model(cfg, vocab_size=vocab_size, seed=0, device=torch.device("meta"), allow=allow)
    batch = plan_batch(
        **{name: cfg.trainer[name] for name in ("batch_size", "grad_accum_steps", "total_batch_tokens", "seq_len")},
        max_seq_len=cfg.model.max_seq_len,
        world_size=1,
    )
    device = pick_device(cfg.trainer.device)
    precision = auto_precision(device) if cfg.trainer.precision == "auto" else cfg.trainer.precision
    dtype = AUTOCAST.get(precision, torch.float32)
    counts = model.parameter_counts()
    forward = model.flops_per_token(batch.seq_len)
    activations = activation_bytes(
        model,
        batch_size=batch.batch_size,
        seq_len=batch.seq_len,
        n_heads=cfg.model.n_heads,
        device=device.type,
        dtype=dtype,
    )
    weights = 4 * counts.total
    facts: dict[str, dict[str, Any]] = {
        "parameters": {
            "total": counts.total,
            "active per token": counts.active,
            "embedding": counts.embedding,
            "embeddings": "tied" if cfg.model.tie_embeddings else "untied",
            "vocabulary": model.vocab_size,
        },
        "FLOPs per token": {
            f"train, context {batch.seq_len}": 3 * forward,
            f"prefill, context {batch.seq_len}": forward,
            f"decode, context {model.max_seq_len}": model.flops_per_token(model.max_seq_len),
        },
        "KV cache, bytes per token": {
            "fp32": model.cache_bytes_per_token(torch.float32),
            "bf16": model.cache_bytes_per_token(torch.bfloat16),
        },
        f"memory, {batch.batch_size} × {batch.seq_len} tokens, {precision}": {
            "weights": weights,
            "gradients": weights,
            "optimizer": 2 * weights,
            "activations": activations,
            "together": 4 * weights + activations,
        },
    }
    return facts, notes


if __name__ == "__main__":
    main()
