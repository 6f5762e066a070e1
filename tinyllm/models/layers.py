"""Layouts: which kind of block is at which depth."""

from collections.abc import Callable, Mapping, Sequence

from tinyllm.models.block import Block

BlockFactory = Callable[..., Block]


def uniform(*, block: BlockFactory, n_layers: int) -> list[BlockFactory]:
    """One block for all layers."""
    return [block] * n_layers


def pattern(
    *, n_layers: int, kinds: Mapping[str, BlockFactory], pattern: Sequence[str], truncate: bool
) -> list[BlockFactory]:
    """Several kinds of block, in a pattern repeated over the depth.

    Args:
        n_layers: number of blocks.
        kinds: block factories by name; ``tinyllm.config.layers`` composes them from overrides.
        pattern: names of kinds, first layer first.
        truncate: whether the last repetition may be cut short.

    Raises:
        ValueError: the pattern is empty, names an unknown kind, leaves a kind unused, or does not divide ``n_layers``.
    """
    shown = f"pattern=[{','.join(map(str, pattern))}]"
    if not pattern:
        raise ValueError(f"{shown} is empty: it lists the kind of each layer, from {', '.join(kinds) or 'none'}")
    unknown = [name for name in pattern if name not in kinds]
    if unknown:
        raise ValueError(f"{shown} names {unknown[0]}, which is not among the kinds {', '.join(kinds) or 'none'}")
    # Refused by default: a cut pattern has a different mix of kinds than the pattern says.
    if n_layers % len(pattern) and not truncate:
        raise ValueError(
            f"{shown} has {len(pattern)} layers, which does not divide n_layers={n_layers}; "
            "model.layers.truncate=true cuts the last repetition short"
        )
    names = [pattern[depth % len(pattern)] for depth in range(n_layers)]
    # A kind without layers is likely a typo in the pattern; its overrides would silently have no effect.
    unused = [name for name in kinds if name not in names]
    if unused:
        raise ValueError(f"{shown} uses no kind {unused[0]} in {n_layers} layers; remove it from kinds")
    return [kinds[name] for name in names]
