"""Refuse settings that cannot work together: objective and data, missing weights, samples that would fail, memory."""

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from tinyllm.config.cli.main import Invocation
from tinyllm.config.targets import Option
from tinyllm.data.batch import PAIRS, PROMPTS, TOKENS
from tinyllm.data.preferences.pairs import PairSplit
from tinyllm.data.run_data import RunData
from tinyllm.errors import UserError
from tinyllm.inference.generator import prompt_ids
from tinyllm.inference.sampling import Sampling
from tinyllm.programs.builders import optimizer_bytes, plain
from tinyllm.programs.data_checks import ROW_ORDER, refuse_typed
from tinyllm.programs.prompt_checks import check_prompt_settings
from tinyllm.programs.saved_weights import WeightSource
from tinyllm.runs.checkpoint import Checkpoint
from tinyllm.runs.layout import TOKENIZER
from tinyllm.tokenizers import Tokenizer, TokenizerTrainer
from tinyllm.tokenizers import load as load_tokenizer
from tinyllm.tokenizers.pretrained import FixedTrainer
from tinyllm.training.memory_estimate import trained_bytes
from tinyllm.training.objectives.base import Objective
from tinyllm.utils.device import device_memory
from tinyllm.utils.nested import flatten
from tinyllm.utils.text import quantity, short

DATA_SETS = {
    TOKENS: "text, e.g. dataset=pydocs",
    PAIRS: "pairs of answers: dataset=preferences",
    PROMPTS: "prompts: dataset=prompts or dataset=tasks",
}
"""What an objective may read, with a data set that gives it."""
OBJECTIVES = {TOKENS: "next_token", PAIRS: "dpo, ipo, simpo, orpo or reward", PROMPTS: "grpo"}
"""What a data set may give, with the objectives that read it."""
RANDOM = ("model.dropout", "model.attn_dropout", "model.layerdrop", "lora.dropout")
"""Keys with which two passes of the same model differ."""
OF_ROWS = ROW_ORDER | {"dataset.too_long"}
"""Keys on how conversations become training windows."""
OF_EQUAL_LENGTH = ("trainer.max_tokens", "trainer.total_batch_tokens", "curriculum.enabled")
"""Keys that need sequences of equal length."""


def check_objective(cfg: DictConfig, objective: Objective, corpus: Any, invocation: Invocation) -> None:
    """Refuse a configuration that the objective cannot train.

    Args:
        objective: on the model of the plan.
        corpus: the data set.

    Raises:
        UserError: the data are of another kind, the reference would be missing or random, or a key needs sequences of
            equal length.
    """
    gives = getattr(corpus, "gives", TOKENS)
    choices = invocation.choices
    name, data = choices.get("objective", type(objective).__name__), choices.get("dataset", type(corpus).__name__)
    if gives != objective.reads and not (objective.reads == PROMPTS and hasattr(corpus, "prompt_splits")):
        hint = f"it needs {DATA_SETS[objective.reads]}"
        if "objective" not in invocation.typed:
            hint = f"choose an objective for it: {OBJECTIVES[gives]}"
            raise UserError(f"objective={name} cannot read these data", key="dataset", value=data, hint=hint)
        raise UserError(f"the objective cannot read dataset={data}", key="objective", value=name, hint=hint)
    if objective.reads == PROMPTS:
        hint = "the model answers prompts, which are not put into windows; leave it out"
        refuse_typed(cfg, OF_ROWS, invocation.typed, hint=hint)
    samples = [key for key in sorted(invocation.typed) if key.startswith("trainer.sample")]
    samples = [key for key in samples if OmegaConf.select(cfg, key)]
    if objective.scores_answers and samples:
        hint = f"objective={name} trains a model that scores answers and writes no text; leave it out"
        raise UserError(
            "the key has no effect here", key=samples[0], value=OmegaConf.select(cfg, samples[0]), hint=hint
        )
    check_prompt_settings(cfg, objective, typed=invocation.typed, allow=invocation.allow)
    if getattr(objective, "needs_reference", False) or objective.reads == PROMPTS:
        if cfg.init_from is None and cfg.resume is None:
            hint = "it improves the answers of a model that was trained before: set init_from=<run directory>"
            raise UserError("no weights to start from", key="objective", value=name, hint=hint)
        for key in RANDOM:
            if value := OmegaConf.select(cfg, key):
                hint = (
                    f"objective={name} compares two passes of the model, which must not differ at random; set it to 0"
                )
                raise UserError("cannot be used with this objective", key=key, value=value, hint=hint)
    if objective.reads != TOKENS:
        for key in OF_EQUAL_LENGTH:
            if value := OmegaConf.select(cfg, key):
                hint = (
                    "pairs have different lengths: use trainer.max_steps or max_epochs, and trainer.batch_size (pairs)"
                )
                raise UserError("cannot be used with these data", key=key, value=value, hint=hint)


def check_lengths(data: RunData, *, seq_len: int) -> None:
    """Refuse pairs of the validation split that are too long, as the source of training does its own.

    Raises:
        UserError: see :meth:`PairSplit.fitting`.
    """
    for split in data.splits("val").values():
        if isinstance(split, PairSplit):
            split.fitting(seq_len)


def tokenizer_for(
    reads: str, chosen: TokenizerTrainer, weights: Checkpoint | WeightSource | None, invocation: Invocation
) -> Any:
    """What gives the tokenizer: the chosen trainer; for pairs of answers the weights that are trained further.

    Args:
        reads: the kind of data of the objective.
        weights: what the run starts from or resumes; None: random weights.

    Raises:
        UserError: the tokenizer cannot be read, or one is chosen on the command line.
    """
    if weights is None or reads == TOKENS:
        return chosen
    typed = sorted(key for key in invocation.typed if key.partition(".")[0] == "tokenizer")
    if typed:
        hint = "these data are encoded with the tokenizer of the weights that are trained further; leave it out"
        raise UserError("the key has no effect here", file=typed[0], hint=hint)
    return FixedTrainer(load_tokenizer(weights.path / TOKENIZER))


def check_sampling(cfg: DictConfig, tokenizer: Tokenizer) -> None:
    """Refuse settings of samples during training that would fail at the first sample.

    Raises:
        UserError: a setting out of range, or a prompt that the tokenizer cannot encode.
    """
    prompt_ids(tokenizer, cfg.trainer.sample_prompt, key="trainer.sample_prompt")
    try:
        Sampling(**plain(cfg.trainer.sample))
    except UserError as error:
        raise UserError(error.what, key=f"trainer.sample.{error.key}", value=error.value, hint=error.hint) from error


def check_max_tokens(cfg: DictConfig, *, seq_len: int) -> None:
    """Refuse ``dataset.max_tokens`` below one training window.

    Raises:
        UserError: it is.
    """
    hint = f"at least {seq_len + 1}, a window of trainer.seq_len={seq_len} and the token after it"
    for key, limit in flatten(plain(cfg.dataset)):
        if key.rpartition(".")[2] == "max_tokens" and limit is not None and limit <= seq_len:
            raise UserError("less than one training window", key=f"dataset.{key}", value=limit, hint=hint)


def check_several_ranks(cfg: DictConfig, invocation: Invocation, *, world_size: int) -> None:
    """Refuse ``distributed.*`` on the command line of a run with one rank.

    Raises:
        UserError: a key is set that has no effect.
    """
    keys = sorted(key for key in invocation.typed if key.startswith("distributed."))
    if keys and world_size == 1:
        hint = "it needs several ranks and this run has one; leave it out"
        raise UserError("the key has no effect here", key=keys[0], value=OmegaConf.select(cfg, keys[0]), hint=hint)


def check_memory(
    cfg: DictConfig, objective: Objective, *, strategy: Any, device: torch.device, allow: frozenset[Option]
) -> None:
    """Refuse a model whose weights, gradients and optimizer state alone exceed the memory of the device.

    Args:
        objective: on the model of the plan.

    Raises:
        UserError: they do.
    """
    model, ranks = objective.model, strategy.world_size if strategy.is_sharded else 1
    counts = model.parameter_counts()
    needed = trained_bytes(
        counts.total,
        optimizer_bytes(cfg, model, allow=allow),
        trained=counts.trained,
        averaged=cfg.ema.enabled,
        reference=objective.needs_reference_model,
        ranks=ranks,
    )
    available = device_memory(device)
    if available is None or needed <= available:
        return
    memory = f"{quantity(needed, 'B')} of {quantity(available, 'B')} available"
    hint = f"weights, gradients and optimizer state need {memory}"
    if 2 * counts.embedding > counts.total:
        hint += f"; most of it is for {model.vocab_size:,} vocabulary entries (largest id {model.vocab_size - 1})"
    shape = f"{short(counts.total)} parameters, model.d_model={cfg.model.d_model}, model.n_layers={cfg.model.n_layers}"
    raise UserError("the model does not fit in memory", file=shape, hint=hint)
