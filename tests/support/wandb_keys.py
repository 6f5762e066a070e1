"""The wandb logger with the defaults of conf/logger/wandb.yaml, offline."""

from typing import Any

from tinyllm.loggers.wandb import Wandb

KEYS: dict[str, Any] = {
    "project": None, "entity": None, "name": None, "group": None, "tags": [], "notes": None, "mode": "offline",
    "x_axis": "tokens", "dir": None, "init_timeout": 20.0, "finish_timeout": 30.0,
}  # fmt: skip


def logger(**keys: Any) -> Wandb:
    return Wandb(**(KEYS | keys))
