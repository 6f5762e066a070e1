"""The cost of a composition in figures: parameters, FLOPs, cache and memory, counted without training it."""

import json
from typing import Any

import torch
from omegaconf import DictConfig

from tinyllm.config.cli.main import Invocation
from tinyllm.config.compose import compose_on_top
from tinyllm.config.learning_rates import origin_of_rate
from tinyllm.config.targets import Option, resolve_target
from tinyllm.errors import UserError, setting
from tinyllm.programs.builders import META, build_model, optimizer_bytes, planned_batch, without_adapters
from tinyllm.programs.cost import cost_of_model, vocabulary
from tinyllm.programs.describe_conversations import describe_conversations
from tinyllm.training.memory_estimate import FP32, activation_bytes
from tinyllm.utils.device import compute_dtype, pick_device, pick_precision
from tinyllm.utils.environment import started_processes
from tinyllm.utils.tables import Column, Table
from tinyllm.utils.text import quantity

Figures = dict[str, dict[str, Any]]
"""Figures by section and name."""


def describe(cfg: DictConfig, invocation: Invocation) -> int:
    """Print the figures of a composition, and those of ``vs`` beside them; or conversations as the model sees them.

    Returns:
        The exit code.
    """
    if cfg.conversations is not None:
        return describe_conversations(cfg, invocation)
    figures, notes = figures_of(cfg, allow=invocation.allow)
    other = None if cfg.vs is None else figures_of_vs(cfg.vs, invocation)
    if invocation.json:
        compared = {} if other is None else {"vs": other, "ratio": ratios(figures, other)}
        print(json.dumps(figures | {"notes": notes} | compared))
        return 0
    table(figures, other, title=str(invocation.choices["model"]), vs=str(cfg.vs)).show()
    for note in notes:
        print(note)
    return 0


def figures_of(cfg: DictConfig, *, allow: frozenset[Option] = frozenset()) -> tuple[Figures, list[str]]:
    """The figures of a composition by section, and notes on what was assumed.

    Memory is for one micro-step of ``trainer.batch_size`` sequences on one rank. Of a model with adapters, the figures
    of training include them; all others are those of the merged model.

    Raises:
        UserError: sizes that do not fit together.
    """
    vocab_size, notes = vocabulary(cfg, allow=allow)
    model: Any = build_model(cfg, vocab_size=vocab_size, seed=0, device=META, allow=allow)
    merged: Any = model
    if cfg.lora:
        merged = build_model(without_adapters(cfg), vocab_size=vocab_size, seed=0, device=META, allow=allow)
    batch = planned_batch(cfg)
    device = pick_device(cfg.trainer.device)
    precision = pick_precision(cfg.trainer.precision, device)
    trained, counts = model.parameter_counts(), merged.parameter_counts()
    costs = cost_of_model(merged, seq_len=batch.seq_len)
    activations = activation_bytes(
        model,
        batch_size=batch.batch_size,
        seq_len=batch.seq_len,
        device=device.type,
        dtype=compute_dtype(precision),
    )
    if model.document_mask:
        notes.append("FLOPs are those of documents that fill the context; shorter ones take fewer in attention")
    ranks = sharing_ranks(cfg, allow=allow)
    if ranks > 1:
        notes.append(f"memory of each of {ranks} ranks, which share weights, gradients and optimizer state")
    weights, gradients = FP32 * trained.total // ranks, FP32 * trained.trained // ranks
    optimizer = optimizer_bytes(cfg, model, allow=allow) // ranks
    memory = {"weights": weights, "gradients": gradients, "optimizer": optimizer}
    memory |= {"average": gradients} if cfg.ema.enabled else {}
    parameters = {"total": counts.total, "active per token": counts.active, "embedding": counts.embedding}
    parameters |= {"of adapters": trained.trained} if cfg.lora else {}
    context = model.max_seq_len
    figures: Figures = {
        "model": {
            "layers": layer_kinds(model),
            "width": model.d_model,
            "hidden size": hidden_size(model),
            "vocabulary": model.vocab_size,
            "embeddings": "tied" if model.head is None else "untied",
            "context": context,
        },
        "parameters": parameters,
        "FLOPs per token": {
            "train": model.training_flops_per_token(batch.seq_len),
            "prefill": merged.flops_per_token(batch.seq_len),
            "decode": costs.decode_flops_per_token,
        },
        "KV cache, bytes": {
            "per token, fp32": model.cache_bytes_per_token(torch.float32),
            "per token, bf16": costs.kv_bytes_per_token,
            "whole context, fp32": model.cache_bytes(context, torch.float32),
            "whole context, bf16": model.cache_bytes(context, torch.bfloat16),
        },
        "training": {
            "sequences": batch.batch_size,
            "tokens per sequence": batch.seq_len,
            "precision": precision,
            "learning rate": float(cfg.optimizer.lr),
            "learning rate from": origin_of_rate(cfg),
        },
        "memory": {**memory, "activations": activations, "together": sum(memory.values()) + activations},
    }
    return figures, notes


def figures_of_vs(vs: str, invocation: Invocation) -> Figures:
    """The figures with the overrides of ``vs`` on top of the command line's.

    Raises:
        UserError: they do not compose or do not fit together; the error names ``vs``.
    """
    try:
        overrides = [override for override in invocation.overrides if not override.startswith("vs=")]
        cfg = compose_on_top(vs, overrides, program="describe", config_dir=invocation.config_dir)
        if cfg.vs is not None:
            raise UserError("vs cannot contain another vs", key="vs", value=cfg.vs, hint="remove the inner one")
        return figures_of(cfg, allow=invocation.allow)[0]
    except UserError as error:
        where = setting(error.key, error.value) if error.key else str(error.file or "")
        hint = ": ".join(filter(None, (where, error.hint)))
        raise UserError(error.what, key="vs", value=vs, hint=hint) from error


def ratios(figures: Figures, other: Figures) -> Figures:
    """The other figures as multiples of these, wherever both are numbers and this one is not 0."""
    return {
        section: {
            name: other[section][name] / value
            for name, value in rows.items()
            if not isinstance(value, str) and value and name in other[section]
        }
        for section, rows in figures.items()
    }


def table(figures: Figures, other: Figures | None, *, title: str, vs: str) -> Table:
    """A row for each figure, a section for each kind; with ``other`` its figures and the ratios beside them.

    A figure that only one of the two has, such as an average, is left blank in the other.
    """
    columns = [Column(name=""), Column(name=title, right=True)]
    columns += [Column(name="vs", right=True), Column(name="ratio", right=True)] if other else []
    rows: list[list[str]] = []
    sections = []
    for section in figures:
        sections.append(len(rows))
        for name in figures[section] | (other or figures)[section]:
            values = [one[section].get(name) for one in (figures, other) if one]
            row = [f"{section}: {name}", *("" if value is None else shown(section, value) for value in values)]
            if other:
                ratio = ratios(figures, other)[section].get(name)
                row.append("" if ratio is None else f"{ratio:.3g}")
            rows.append(row)
    whole_title = f"{title} vs {vs}" if other else title
    return Table(columns=columns, rows=rows, title=whole_title, sections=sections, header=other is not None)


def shown(section: str, value: float | str) -> str:
    """A figure as text: memory with a prefix, counts exactly."""
    if isinstance(value, float | str):
        return f"{value:g}" if isinstance(value, float) else value
    return quantity(value, "B") if section == "memory" else f"{value:,}"


def hidden_size(model: Any) -> int | str:
    """The hidden size of the feed-forward layers, of one expert in a mixture; several where layers differ."""
    sizes = list(dict.fromkeys(block.ffn.d_ff for block in model.layers()))
    return sizes[0] if len(sizes) == 1 else ", ".join(map(str, sizes))


def sharing_ranks(cfg: DictConfig, *, allow: frozenset[Option] = frozenset()) -> int:
    """The number of ranks that share weights, gradients and optimizer state; 1: each rank has all of them."""
    strategy: Any = resolve_target(cfg.strategy, path="strategy", extra=allow)
    if not getattr(strategy, "is_sharded", False):
        return 1
    return int(cfg.strategy.get("nproc_per_node") or started_processes() or 1)


def layer_kinds(model: Any) -> str:
    """The number of layers of each kind, named by the classes of their parts and the positions they remember."""
    counts: dict[str, int] = {}
    for block in model.layers():
        slots = block.attn.cache_slots(model.max_seq_len)
        limit = f" (last {slots})" if slots < model.max_seq_len else ""
        kind = f"{type(block.attn).__name__}{limit} + {type(block.ffn).__name__}"
        counts[kind] = counts.get(kind, 0) + 1
    return ", ".join(f"{count} × {kind}" for kind, count in counts.items())
