"""Rewards and tools of a run on prompts, and what cannot work together with them."""

from collections.abc import Collection
from itertools import islice
from typing import Any

import torch
from omegaconf import DictConfig

from tinyllm.config.build import build
from tinyllm.config.targets import Option, resolve_target
from tinyllm.data.batch import PROMPTS
from tinyllm.data.prompt_data import PromptData
from tinyllm.errors import UserError
from tinyllm.inference.rewards.base import Reward, Rewards
from tinyllm.inference.tools.base import Tool
from tinyllm.programs.builders import plain
from tinyllm.runs.checkpoint import Checkpoint
from tinyllm.training.objectives.base import Objective
from tinyllm.utils.signatures import parameters_of

CPU = torch.device("cpu")
REWARDS = "rewards"
"""The manifest's entry of the reward models of a run: a digest of the weights of each, by name."""
NODES = ("reward", "tools")
"""Nodes that only objectives on prompts read."""
CHECKED = 1000
"""Prompts of training that are looked at before it begins; files of more are checked as they are read."""


def build_tool(cfg: DictConfig, *, allow: frozenset[Option]) -> Tool | None:
    """The tool of ``tools=``; None: no tool.

    Raises:
        UserError: the class is not a tool, or refuses its settings.
    """
    if not cfg.tools:
        return None
    tool = build(cfg.tools, path="tools", allow=allow)
    if not isinstance(tool, Tool):
        hint = "derive it from tinyllm.inference.tools.base.Tool"
        raise UserError("not a tool", key="tools._target_", value=type(tool).__name__, hint=hint)
    return tool


def build_rewards(cfg: DictConfig, *, allow: frozenset[Option], device: torch.device = CPU) -> Rewards:
    """The rewards of ``reward=[…]``.

    Args:
        device: where a reward computes that has a model.

    Raises:
        UserError: there are none, or one refuses its settings.
    """
    rewards: dict[str, Reward] = {}
    for name, node in (cfg.reward or {}).items():
        path, given = f"reward.{name}", {"device": device, "trusted": allow}
        taken = parameters_of(resolve_target(plain(node), path=path, extra=allow)) or ()
        runtime = {argument: value for argument, value in given.items() if argument in taken}
        rewards[str(name)] = build(node, path=path, allow=allow, **runtime)
    return Rewards(rewards)


def check_same_rewards(cfg: DictConfig, checkpoint: Checkpoint, *, allow: frozenset[Option]) -> None:
    """Refuse to resume a run with other reward models than those it was trained with.

    Raises:
        UserError: the weights of one differ.
    """
    saved = checkpoint.manifest.get(REWARDS, {})
    current = build_rewards(cfg, allow=allow).digests if cfg.reward and saved else {}
    for name, digest in current.items():
        if name in saved and saved[name] != digest:
            hint = f"its weights are {digest[:12]}, the run's were {saved[name][:12]}; restore them, or start a new run"
            hint += f" with init_from={checkpoint.run_dir}"
            value = cfg.reward[name].get("run")
            raise UserError("the reward model differs from the run's", key=f"reward.{name}.run", value=value, hint=hint)


def check_prompt_settings(
    cfg: DictConfig, objective: Objective, *, typed: Collection[str], allow: frozenset[Option]
) -> None:
    """Refuse rewards or tools that cannot be built, or that the objective does not read.

    Args:
        typed: keys and groups of the command line.

    Raises:
        UserError: names the key.
    """
    if objective.reads == PROMPTS:
        build_rewards(cfg, allow=allow)
        build_tool(cfg, allow=allow)
        return
    named = sorted(key for key in typed if key.partition(".")[0] in NODES)
    if named:
        hint = "only objective=grpo reads it; leave it out"
        raise UserError("the key has no effect here", file=named[0], hint=hint)


def check_prompts(cfg: DictConfig, data: Any, objective: Any, *, allow: frozenset[Option]) -> None:
    """Refuse prompts without the answer that a reward reads, and prompts too long for the context or a reward model.

    Raises:
        UserError: names the prompt, or the longest that there may be.
    """
    if not isinstance(data, PromptData):
        return
    prompts = [*islice(data.train.prompts, CHECKED), *data.val.prompts]
    rendered = (
        data.chat_template.render(prompt.conversation, data.tokenizer, add_generation_prompt=True).ids
        for prompt in prompts
    )
    longest, context = max(map(len, rendered)), cfg.model.max_seq_len
    if longest + objective.max_new_tokens > context:
        hint = f"at most {max(context - longest, 0)}: the longest prompt has {longest} tokens, the context {context}"
        what = "prompt and answer do not fit into the context"
        raise UserError(what, key="objective.max_new_tokens", value=objective.max_new_tokens, hint=hint)
    rewards = build_rewards(cfg, allow=allow)
    rewards.check(prompts, tokenizer=data.tokenizer, max_new_tokens=objective.max_new_tokens)
