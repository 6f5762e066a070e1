"""Fixtures of the report's tests."""

from tests.loggers.conftest import clean_wandb

__all__ = ["clean_wandb"]
