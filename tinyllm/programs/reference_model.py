"""The model that training started from, kept beside the trained one to compare it with."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinyllm.data.batch import Batch
from tinyllm.programs.builders import build_model, without_adapters
from tinyllm.programs.run_plan import RunPlan
from tinyllm.runs import checkpoint as checkpoints
from tinyllm.training.objectives.grpo import GRPO
from tinyllm.utils.device import autocast, compute_dtype


@dataclass(frozen=True, kw_only=True)
class ReferenceModel:
    """A frozen model: no part of the training state, so it is neither wrapped nor averaged nor saved.

    What a checkpoint names instead are the weights of the start, see ``programs.saved_weights.REFERENCE``.
    """

    plan: RunPlan
    model: Any
    objective: GRPO

    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probabilities (R, T) of the targets of a batch, 0 where nothing is predicted; on the CPU.

        By the passes of training: with equal weights they have the same bits.
        """
        plan = self.plan
        with torch.no_grad(), autocast(plan.device, plan.precision):
            scores = self.objective.scores(self.model, batch.to(plan.device))[0]
        return scores.logprobs.view(batch.targets.shape).cpu()


def make_reference(plan: RunPlan, objective: GRPO) -> ReferenceModel | None:
    """The reference of a run; None: its objective needs none.

    Raises:
        UserError: the weights cannot be read.
    """
    if plan.reference is None:
        return None
    strategy = plan.strategy
    model = build_model(
        without_adapters(plan.cfg),
        vocab_size=plan.data.tokenizer.vocab_size,
        seed=plan.cfg.seed,
        device=plan.device,
        allow=plan.invocation.allow,
        place=strategy.reference_placer(plan.device, compute_dtype(plan.precision)),
    )
    source = plan.reference
    load = partial(checkpoints.load_weights, file=source.path, rows=strategy.rows, local=strategy.local_tensor)
    load(source.open(), model.state_dict())
    return ReferenceModel(plan=plan, model=model.requires_grad_(False).eval(), objective=objective)
