"""tinyllm: train small and medium language models, and compare architectures with honest numbers.

``tinyllm.compose("model=large", "attn=gqa")`` returns a configuration, ``tinyllm.load(run)`` a trained model and its
tokenizer. Both are imported at first use, so that ``import tinyllm`` loads neither torch nor Hydra.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyllm.config.compose import compose
    from tinyllm.programs.load_model import load

__version__ = "0.1.0"
__all__ = ["compose", "load"]


def __getattr__(name: str) -> Any:
    if name == "compose":
        from tinyllm.config.compose import compose

        return compose
    if name == "load":
        from tinyllm.programs.load_model import load

        return load
    raise AttributeError(f"module 'tinyllm' has no attribute {name!r}")
