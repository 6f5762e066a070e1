"""The horizon of a run that sets none: a number of steps, which depends on the chosen size."""

from omegaconf import DictConfig, OmegaConf

HORIZON = ("trainer.max_steps", "trainer.max_tokens", "trainer.max_epochs")
"""Keys that set the length of a run."""
DEFAULT_STEPS = 2000
STEPS_OF_SIZE = {"nano": 1200}
"""Steps by option of the group ``model``, where they differ. nano is what a newcomer runs first, on any machine."""


def fill_horizon(cfg: DictConfig, size: str) -> None:
    """Set ``trainer.max_steps`` to the default of the size if no horizon is given, so that a saved run keeps its own.

    Args:
        cfg: a composed configuration, changed in place; one without ``trainer`` is left as it is.
        size: the chosen option of the group ``model``.
    """
    if "trainer" not in cfg:
        return
    names = [key.rpartition(".")[2] for key in HORIZON]
    # An interpolation is a horizon, but has no type yet: an environment variable may hold "1e3".
    if not any(OmegaConf.is_interpolation(cfg.trainer, name) or cfg.trainer[name] is not None for name in names):
        cfg.trainer[names[0]] = STEPS_OF_SIZE.get(size, DEFAULT_STEPS)
