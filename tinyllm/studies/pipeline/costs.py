"""What a stage costs, before it runs: steps, tokens and FLOPs."""

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from tinyllm.config.targets import Option
from tinyllm.programs import cost
from tinyllm.programs.builders import HORIZON, planned_batch


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """The cost of a stage that trains.

    Attributes:
        vocabulary: size of the tokenizer's vocabulary, or that which is assumed while the data are not prepared.
        steps: None if the horizon is given in tokens or epochs.
        tokens: trained on, at most: rows of conversations are shorter than the context, and answers end early.
        flops: of training on them.
    """

    vocabulary: int
    parameters: int
    steps: int | None
    tokens: int | None
    flops: int | None


def cost_of(cfg: DictConfig, *, vocabulary: int | None, allow: frozenset[Option]) -> StageCost:
    """The cost of a composed training configuration. Prepares no data.

    Args:
        vocabulary: size of the vocabulary of the stage that it starts from; None: its own.

    Raises:
        UserError: sizes that do not fit together.
    """
    size = vocabulary or cost.vocabulary(cfg, allow=allow)[0]
    model = cost.model_cost(cfg, vocab_size=size, allow=allow)
    batch = planned_batch(cfg, world_size=cfg.strategy.get("nproc_per_node") or 1)
    steps = cfg.trainer.max_steps
    per_step = batch.tokens * (OmegaConf.select(cfg, "objective.group_size") or 1)
    tokens = cfg.trainer.max_tokens if steps is None else steps * per_step
    return StageCost(
        vocabulary=size,
        parameters=model.parameters,
        steps=steps if all(cfg.trainer[name] is None for name in HORIZON if name != "max_steps") else None,
        tokens=tokens,
        flops=None if tokens is None else tokens * model.flops_per_token,
    )
