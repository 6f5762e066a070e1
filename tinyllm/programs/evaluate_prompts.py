"""Evaluation of a run of reinforcement learning: the rewards of its answers to the prompts it was trained on."""

import time
from collections.abc import Collection, Sequence
from typing import Any

from omegaconf import DictConfig

from tinyllm.config.build import build
from tinyllm.config.targets import Option, resolve_target
from tinyllm.data.batch import PROMPTS
from tinyllm.data.prompt_data import PromptCorpus, PromptData, prompt_data
from tinyllm.data.prompts import Prompt
from tinyllm.data.tasks.corpus import TaskCorpus
from tinyllm.errors import UserError
from tinyllm.programs.builders import plain
from tinyllm.programs.conversations import saved_template
from tinyllm.programs.load_model import SavedModel, model_of
from tinyllm.programs.prompt_checks import build_rewards
from tinyllm.programs.quantization import round_to_int8
from tinyllm.programs.task_answers import prompt_answers, shown_settings
from tinyllm.tokenizers.pretrained import FixedTrainer
from tinyllm.training.objectives.base import Objective
from tinyllm.utils.device import pick_device, pick_precision

TEXT_ONLY = ("seq_len", "stride", "eval_tokens", "batch_size")
"""Settings that have no meaning for answers to prompts."""


def prompts_to_evaluate(cfg: DictConfig, saved: SavedModel, *, allow: frozenset[Option]) -> Any:
    """The data set of the command line if it holds prompts, or that of a run that answered prompts; None: neither.

    ``dataset=tasks`` on the command line is evaluated as conversations, by whatever run.
    """
    node = saved.cfg.get("dataset") if cfg.dataset is None else cfg.dataset
    if node is None:
        return None
    is_own = cfg.dataset is None and _reads_prompts(saved, allow=allow)
    if not is_own and not issubclass(resolve_target(plain(node), path="dataset", extra=allow), PromptCorpus):
        return None
    return build(node, path="dataset", allow=allow, chat_template=saved_template(saved))


def _reads_prompts(saved: SavedModel, *, allow: frozenset[Option]) -> bool:
    """Whether the run was trained on answers to prompts."""
    node = saved.cfg.get("objective")
    if node is None:
        return False
    objective = resolve_target(plain(node), path="objective", extra=allow)
    return issubclass(objective, Objective) and objective.reads == PROMPTS


def evaluate_prompts(
    cfg: DictConfig, saved: SavedModel, corpus: Any, run: str, *, typed: Collection[str], allow: frozenset[Option]
) -> dict[str, Any]:
    """The rewards of a run's answers to the prompts of a split, by default its own, and how many are right.

    Answers are made as in its training: with its tools and its limit on new tokens, unless the command line names
    others; and they are the most likely ones unless ``answers.temperature`` is set.

    Raises:
        UserError: the prompts have changed, have no answers, or a setting does not apply.
    """
    for key in TEXT_ONLY:
        if cfg[key] is not None:
            hint = "it applies to texts, and the data are prompts to answer; leave it out"
            raise UserError("the key has no effect here", key=key, value=cfg[key], hint=hint)
    device = pick_device(cfg.device, key="device")
    precision = pick_precision(cfg.precision, device)
    if cfg.dataset is None:
        corpus.pin(saved.data.get("revision"))
    corpus.check()
    prompts = _prompts(cfg, saved, corpus, run)
    cfg = cfg.copy()
    rewards = None
    if _reads_prompts(saved, allow=allow):
        rewards = build_rewards(cfg if cfg.reward else saved.cfg, allow=allow, device=device)
        if not any(key.partition(".")[0] == "tools" for key in typed):
            cfg.tools = saved.cfg.tools
        if "answers.max_new_tokens" not in typed:
            cfg.answers.max_new_tokens = saved.cfg.objective.max_new_tokens
    elif cfg.reward:
        rewards = build_rewards(cfg, allow=allow, device=device)
    elif all(prompt.answer is None for prompt in prompts):
        hint = 'add the field "answer", which answers are compared with; or evaluate a run of objective=grpo'
        raise UserError("the prompts have no answers", key="dataset.path", value=cfg.dataset.path, hint=hint)
    model = model_of(saved, weights=cfg.weights, device=device, allow=allow)
    if cfg.quantize == "int8":
        round_to_int8(model, precision)
    start = time.perf_counter()
    metrics = prompt_answers(cfg, saved, prompts, model, rewards, device=device, precision=precision, allow=allow)
    if all(prompt.answer is None for prompt in prompts):
        metrics.pop("task/exact")
    metrics = {f"{cfg.split}/{name}" if name.startswith("reward") else name: each for name, each in metrics.items()}
    return metrics | {
        **shown_settings(cfg),
        "checkpoint": str(saved.path),
        "step": saved.step,
        "split": cfg.split,
        "prompts": len(prompts),
        "precision": precision,
        "quantize": cfg.quantize,
        "seconds": round(time.perf_counter() - start, 2),
    }


def _prompts(cfg: DictConfig, saved: SavedModel, corpus: Any, run: str) -> Sequence[Prompt]:
    """The prompts of the split.

    Raises:
        UserError: there is no test split, or the run's own prompts have changed.
    """
    if cfg.split == "test":
        if not isinstance(corpus, TaskCorpus):
            raise UserError("the data set has no test split", key="split", value="test", hint="use val or train")
        return corpus.for_test().prompt_splits()[1]
    data: PromptData = prompt_data(corpus, FixedTrainer(saved.tokenizer))
    if cfg.dataset is None and data.fingerprints()[cfg.split] != saved.data.get(cfg.split):
        hint = "restore the old files, or name others with dataset=prompts dataset.path=<file>"
        raise UserError("the prompts differ from those the run was trained on", key="run", value=run, hint=hint)
    return (data.train if cfg.split == "train" else data.val).prompts
