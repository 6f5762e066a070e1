"""The metric that the arms of a comparison are compared by."""

import json
from collections.abc import Sequence

from tinyllm.data.batch import PROMPTS, TOKENS
from tinyllm.data.run_data import has_bytes, validation_fingerprints
from tinyllm.errors import UserError
from tinyllm.programs.builders import plain
from tinyllm.runs.metric_kinds import Direction, MetricKind, chosen_metric
from tinyllm.studies.compare.composed_arms import ComposedArm
from tinyllm.studies.compare.evaluations import DEFAULT, EVALUATED, SharedEvaluation
from tinyllm.studies.compare.validation import METRIC

ON_ANSWERS = 'metric=task/exact with validation="dataset=tasks", or metric=win/rate with validation="versus=…"'


def metric_of(
    arms: Sequence[ComposedArm], name: str | None, *, direction: Direction | None, validation: str | None
) -> tuple[MetricKind, SharedEvaluation | None]:
    """The metric to compare by, and the evaluation of finished runs that gives it; None: they log it.

    Args:
        name: as the user gives it; None: what all arms have in common.
        validation: the text of the arms, or the settings of an evaluation.

    Raises:
        UserError: the arms have no metric in common, or the settings contradict each other.
    """
    if name is None:
        if direction is not None:
            hint = "it says which values of metric=… are better; name the metric, or leave it out"
            raise UserError("the key has no effect here", key="direction", value=direction, hint=hint)
        return chosen_metric(METRIC if validation is not None else shared_metric(arms), direction=None), None
    kind = chosen_metric(name, direction=direction)
    if name.startswith(EVALUATED):
        return kind, SharedEvaluation(validation or DEFAULT, name)
    if validation is not None:
        hint = f"the runs log {name} on their own validation; leave validation out, or choose {ON_ANSWERS}"
        raise UserError("the key has no effect here", key="validation", value=validation, hint=hint)
    check_same_data(arms)
    return kind, None


def check_same_data(arms: Sequence[ComposedArm]) -> None:
    """Refuse arms with different data sets, whose own validation texts differ.

    Raises:
        UserError: two arms have them.
    """
    first = plain(arms[0].cfg.dataset)
    for arm in arms[1:]:
        if plain(arm.cfg.dataset) != first:
            hint = 'name a text that all are compared on, e.g. validation="dataset=wikitext", or metric=task/exact'
            raise UserError("the arms have different data", file=f"{arms[0].name} and {arm.name}", hint=hint)


def shared_metric(arms: Sequence[ComposedArm]) -> str:
    """The metric to compare: bits per byte, or the loss where the number of bytes is unknown; of answers, the reward.

    Raises:
        UserError: bits per byte are unknown and the arms have different tokens; or the arms have no loss or reward that
            means the same in all of them.
    """
    if any(arm.objective.reads != TOKENS for arm in arms):
        rewards = {json.dumps(plain(arm.cfg).get("reward"), sort_keys=True) for arm in arms}
        if all(arm.objective.reads == PROMPTS for arm in arms) and len(rewards) == 1:
            return arms[0].objective.selects
        hint = f"name one that means the same in all arms, e.g. {ON_ANSWERS}"
        what = "the losses or rewards of the arms are not comparable"
        raise UserError(what, key="metric", value="null", hint=hint)
    if all(has_bytes(arm.data) for arm in arms):
        return "val/bpb"
    if len({validation_fingerprints(arm.data) for arm in arms}) > 1:
        hint = "losses per token cannot be compared across vocabularies, and these tokens have no byte counts"
        raise UserError("the arms are evaluated on different tokens", file="val/loss", hint=hint)
    return "val/loss"
