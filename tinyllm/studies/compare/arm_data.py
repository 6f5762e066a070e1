"""The data of an arm, whatever its objective reads, and the tokens that a step of it takes."""

from itertools import islice
from statistics import fmean
from typing import Any

from omegaconf import DictConfig

from tinyllm.config.targets import Option
from tinyllm.data.batch import PROMPTS, TOKENS
from tinyllm.data.prompt_data import PromptData, prompt_data
from tinyllm.data.run_data import RunData, mean_tokens, train_sources
from tinyllm.errors import UserError
from tinyllm.programs.builders import META, PLACEHOLDER_VOCAB, build_model, open_corpus, open_data
from tinyllm.programs.saved_weights import open_weights
from tinyllm.tokenizers.pretrained import FixedTrainer
from tinyllm.training.batch_plan import BatchPlan
from tinyllm.training.objectives.base import Objective

MEASURED = 256
"""Prompts whose mean length stands for that of all."""


def meta_model(cfg: DictConfig, *, allow: frozenset[Option]) -> Any:
    """The model of an arm without memory, with a placeholder of a vocabulary."""
    return build_model(cfg, vocab_size=cfg.model.vocab_size or PLACEHOLDER_VOCAB, seed=0, device=META, allow=allow)


def arm_data(cfg: DictConfig, objective: Objective, *, allow: frozenset[Option], lines: bool) -> RunData:
    """What an arm trains on, with the tokenizer that its runs will use.

    Args:
        lines: print the stages of data preparation to standard output.

    Raises:
        UserError: the data cannot be prepared, or an objective on answers has no weights to start from.
    """
    corpus, trainer = open_corpus(cfg, allow=allow)
    if objective.reads != TOKENS:
        if cfg.init_from is None:
            name = type(objective).__name__
            hint = "it improves the answers of a model that was trained before: set init_from=<run directory>"
            raise UserError("no weights to start from", key="objective", value=name, hint=hint)
        weights = open_weights(cfg.init_from, key="init_from", allow=allow)
        trainer = FixedTrainer(weights.tokenizer())
    if objective.reads == PROMPTS:
        data: RunData = prompt_data(corpus, trainer)
        return data
    return open_data(corpus, trainer, lines=lines)


def step_tokens(objective: Objective, data: Any, batch: BatchPlan) -> tuple[int, int]:
    """Training tokens of a step, and tokens that are generated for it: of answers, the most that there may be."""
    if objective.reads == TOKENS:
        return batch.tokens, 0
    answers, longest = objective.answers_per_sample
    if isinstance(data, PromptData):
        render = data.chat_template.render
        prompts = islice(data.train.prompts, MEASURED)
        lengths = [len(render(one.conversation, data.tokenizer, add_generation_prompt=True).ids) for one in prompts]
        return round(batch.sequences * answers * (fmean(lengths) + longest)), batch.sequences * answers * longest
    (source,) = train_sources(data, seq_len=batch.seq_len, seed=0).values()
    return round(batch.sequences * mean_tokens(source, seq_len=batch.seq_len)), 0
