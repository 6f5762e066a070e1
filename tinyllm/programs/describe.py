"""``python -m tinyllm.describe model=large attn=gqa``: what a composition costs, without building it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tinyllm.config.cli.main import Invocation
    from tinyllm.config.targets import Option

Facts = dict[str, dict[str, Any]]
"""Figures by section and name."""


def main() -> None:
    """Entry point of ``tinyllm-describe``."""
    from tinyllm.config.cli.main import run

    run("describe", _task)


def _task(cfg: "DictConfig", invocation: "Invocation") -> int:
    import json

    facts, notes = account(cfg, allow=invocation.allow)
    others = None if cfg.vs is None else _other(cfg.vs, invocation)
    if invocation.json:
        other = {} if others is None else {"vs": others, "ratio": ratios(facts, others)}
        print(json.dumps(facts | {"notes": notes} | other))
        return 0
    from rich.console import Console

    console = Console()
    console.print(_table(facts, others, title=str(invocation.choices["model"]), other=str(cfg.vs)))
    for note in notes:
        console.print(note)
    return 0


def _other(text: str, invocation: "Invocation") -> Facts:
    """The figures with the overrides of ``vs`` on top.

    Raises:
        UserError: they do not compose or do not go together; it names ``vs``.
    """
    from tinyllm.config.compose import compose_on_top
    from tinyllm.errors import UserError, setting

    try:
        mine = [one for one in invocation.overrides if not one.startswith("vs=")]
        cfg = compose_on_top(text, mine, program="describe", config_dir=invocation.config_dir)
        if cfg.vs is not None:
            raise UserError("one comparison at a time", key="vs", value=cfg.vs, hint="leave it out")
        return account(cfg, allow=invocation.allow)[0]
    except UserError as error:
        where = setting(error.key, error.value) if error.key else str(error.file or "")
        raise UserError(error.what, key="vs", value=text, hint=": ".join(filter(None, (where, error.hint)))) from error


def ratios(facts: Facts, others: Facts) -> Facts:
    """The second figure as a multiple of the first, wherever both are numbers."""
    return {
        section: {
            name: others[section][name] / value
            for name, value in rows.items()
            if not isinstance(value, str) and value and name in others[section]
        }
        for section, rows in facts.items()
    }


def _table(facts: Facts, others: Facts | None, *, title: str, other: str) -> Any:
    from rich.table import Table

    whole = f"{title} vs {other}" if others else title
    table = Table(show_header=others is not None, title=whole, title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column(title, justify="right")
    if others:
        table.add_column("vs", justify="right")
        table.add_column("ratio", justify="right")
    for section, rows in facts.items():
        table.add_section()
        for name, value in rows.items():
            cells = [_shown(section, value)]
            if others:
                cells.append(_shown(section, others[section][name]))
                ratio = ratios(facts, others)[section].get(name)
                cells.append("" if ratio is None else f"{ratio:.3g}")
            table.add_row(f"{section}: {name}", *cells)
    return table


def _shown(section: str, value: "int | str") -> str:
    """A figure for people: exact where it is a count, with a prefix where it is memory."""
    from tinyllm.utils.text import quantity

    if isinstance(value, str):
        return value
    return quantity(value, "B") if section == "memory" else f"{value:,}"


def account(cfg: "DictConfig", *, allow: "frozenset[Option]" = frozenset()) -> tuple[Facts, list[str]]:
    """The figures of a composition, by section, and sentences on what was assumed. No memory is taken.

    Parameters are counted, FLOPs and cache bytes are the modules' own accounting; memory is for one micro-step of
    ``trainer.batch_size`` sequences on one rank.

    Raises:
        UserError: sizes that do not go together.
    """
    import torch

    from tinyllm.programs.builders import build_model, optimizer_bytes
    from tinyllm.programs.cost import of_model, vocabulary
    from tinyllm.training.batch_plan import plan_batch
    from tinyllm.training.memory_estimate import FP32, activation_bytes
    from tinyllm.utils.device import compute_dtype, pick_device, pick_precision

    vocab_size, notes = vocabulary(cfg, allow=allow)
    model: Any = build_model(cfg, vocab_size=vocab_size, seed=0, device=torch.device("meta"), allow=allow)
    batch = plan_batch(
        **{name: cfg.trainer[name] for name in ("batch_size", "grad_accum_steps", "total_batch_tokens", "seq_len")},
        max_seq_len=cfg.model.max_seq_len,
        world_size=1,
    )
    device = pick_device(cfg.trainer.device)
    precision = pick_precision(cfg.trainer.precision, device)
    dtype = compute_dtype(precision)
    counts = model.parameter_counts()
    costs = of_model(model, seq_len=batch.seq_len)
    activations = activation_bytes(
        model, batch_size=batch.batch_size, seq_len=batch.seq_len, device=device.type, dtype=dtype
    )
    weights = FP32 * counts.total
    kept = optimizer_bytes(cfg, model, allow=allow)
    ranks = sharing_ranks(cfg, allow=allow)
    if ranks > 1:
        notes.append(f"memory of each of {ranks} ranks, which keep a part of weights, gradients and optimizer state")
    memory = {"weights": weights // ranks, "gradients": weights // ranks, "optimizer": kept // ranks}
    memory |= {"average": weights // ranks} if cfg.ema.enabled else {}
    context = model.max_seq_len
    facts: Facts = {
        "model": {
            "layers": _layers(model),
            "width": model.d_model,
            "hidden size": _hidden(model),
            "vocabulary": model.vocab_size,
            "embeddings": "tied" if model.head is None else "untied",
            "context": context,
        },
        "parameters": {"total": counts.total, "active per token": counts.active, "embedding": counts.embedding},
        "FLOPs per token": {
            "train": costs.flops_per_token,
            "prefill": model.flops_per_token(batch.seq_len),
            "decode": costs.decode_flops_per_token,
        },
        "KV cache, bytes": {
            "per token, fp32": model.cache_bytes_per_token(torch.float32),
            "per token, bf16": costs.kv_bytes_per_token,
            "whole context, fp32": model.cache_bytes(context, torch.float32),
            "whole context, bf16": model.cache_bytes(context, torch.bfloat16),
        },
        "training": {"sequences": batch.batch_size, "tokens per sequence": batch.seq_len, "precision": precision},
        "memory": {**memory, "activations": activations, "together": sum(memory.values()) + activations},
    }
    return facts, notes


def _hidden(model: Any) -> "int | str":
    """The hidden size of the feed-forward layers, of a mixture that of an expert; several where they differ."""
    sizes = list(dict.fromkeys(block.ffn.d_ff for block in model.layers()))
    return sizes[0] if len(sizes) == 1 else ", ".join(map(str, sizes))


def sharing_ranks(cfg: "DictConfig", *, allow: "frozenset[Option]" = frozenset()) -> int:
    """Ranks among which weights, gradients and optimizer state are divided; 1: each has all of them."""
    from tinyllm.config.targets import resolve_target
    from tinyllm.utils.environment import started_processes

    strategy: Any = resolve_target(cfg.strategy, path="strategy", extra=allow)
    if not getattr(strategy, "is_sharded", False):
        return 1
    return int(cfg.strategy.get("nproc_per_node") or started_processes() or 1)


def _layers(model: Any) -> str:
    """How many layers there are of each kind, by the classes of their parts and the positions that they remember."""
    counted: dict[str, int] = {}
    for block in model.layers():
        slots = block.attn.cache_slots(model.max_seq_len)
        limit = f" (last {slots})" if slots < model.max_seq_len else ""
        parts = f"{type(block.attn).__name__}{limit} + {type(block.ffn).__name__}"
        counted[parts] = counted.get(parts, 0) + 1
    return ", ".join(f"{count} × {parts}" for parts, count in counted.items())
