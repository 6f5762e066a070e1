"""Which block stands at which depth."""

from collections.abc import Callable, Mapping, Sequence

from tinyllm.models.block import Block

BlockFactory = Callable[..., Block]


def uniform(*, block: BlockFactory, n_layers: int) -> list[BlockFactory]:
    """The same block at every depth."""
    return [block] * n_layers


def pattern(
    *, n_layers: int, kinds: Mapping[str, BlockFactory], pattern: Sequence[str], truncate: bool
) -> list[BlockFactory]:
    """Several kinds of block, in a pattern that is repeated over the depth.

    Args:
        n_layers: how many blocks the model has.
        kinds: the block of each name; ``tinyllm.config.layers`` makes them of overrides.
        pattern: names, the first layer's first.
        truncate: whether the last repetition may be cut short.

    Raises:
        ValueError: an empty pattern, a name without a kind, a kind that no layer is of, a length that does not divide
            ``n_layers``.
    """
    shown = f"pattern=[{','.join(map(str, pattern))}]"
    if not pattern:
        raise ValueError(f"{shown} is empty: it names the kind of each layer, of {', '.join(kinds) or 'none'}")
    unknown = [name for name in pattern if name not in kinds]
    if unknown:
        raise ValueError(f"{shown} names {unknown[0]}, and the kinds are {', '.join(kinds) or 'none'}")
    if n_layers % len(pattern) and not truncate:
        raise ValueError(
            f"{shown} has {len(pattern)} layers, which does not divide n_layers={n_layers}; "
            "model.layers.truncate=true cuts the last repetition short"
        )
    names = [pattern[depth % len(pattern)] for depth in range(n_layers)]
    unused = [name for name in kinds if name not in names]
    if unused:
        raise ValueError(f"{shown} gives none of the {n_layers} layers the kind {unused[0]}; leave it out")
    return [kinds[name] for name in names]
