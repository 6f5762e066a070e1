"""Fixtures of the report's tests."""

from tests.loggers.conftest import nobodys_wandb

__all__ = ["nobodys_wandb"]
