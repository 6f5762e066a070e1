"""Names in the files of earlier runs and what they are called today. Loads neither torch nor Hydra."""

from typing import Any

MOVED = {
    "tinyllm.training.distributed.SingleProcess": "tinyllm.training.distributed.strategy.SingleProcess",
    "tinyllm.training.distributed.auto": "tinyllm.training.distributed.auto.auto",
    "tinyllm.training.distributed.strategy.auto": "tinyllm.training.distributed.auto.auto",
    "tinyllm.training.ddp.DDP": "tinyllm.training.distributed.ddp.DDP",
    "tinyllm.training.fsdp.FSDP": "tinyllm.training.distributed.fsdp.FSDP",
    "tinyllm.nn.attention.gqa.GQA": "tinyllm.nn.attention.mha.GQA",
    "tinyllm.nn.attention.mqa.MQA": "tinyllm.nn.attention.mha.MQA",
}
"""Old names of classes that have moved, as found in ``config.yaml`` files, and their new names."""

NEXT_TOKEN = "tinyllm.training.objectives.next_token.NextToken"
LOSS, OBJECTIVE = "loss", "objective"
"""The node of the loss before objectives were a group, and the node of the objective."""


def renamed(content: Any) -> Any:
    """A saved configuration, in plain containers, with the current names of keys and classes."""
    if isinstance(content, dict) and isinstance(content.get(LOSS), dict) and OBJECTIVE not in content:
        content = {OBJECTIVE if key == LOSS else key: child for key, child in content.items()}
        content[OBJECTIVE] = {"_target_": NEXT_TOKEN, **content[OBJECTIVE]}
    return _with_moved_classes(content)


def renamed_setting(setting: Any) -> Any:
    """A setting that a run saved, as ``key=value``, with the current name of its key."""
    old = f"{LOSS}."
    return f"{OBJECTIVE}.{setting[len(old) :]}" if isinstance(setting, str) and setting.startswith(old) else setting


def _with_moved_classes(content: Any) -> Any:
    if isinstance(content, dict):
        return {
            key: MOVED.get(child, child) if key == "_target_" and isinstance(child, str) else _with_moved_classes(child)
            for key, child in content.items()
        }
    return [_with_moved_classes(child) for child in content] if isinstance(content, list) else content
