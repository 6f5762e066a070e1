"""Which block stands at which depth."""

from collections.abc import Callable

from tinyllm.models.block import Block

BlockFactory = Callable[..., Block]


def uniform(*, block: BlockFactory, n_layers: int) -> list[BlockFactory]:
    """The same block at every depth."""
    return [block] * n_layers
