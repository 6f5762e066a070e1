"""What is measured after a stage: evaluations in processes of their own, samples, and the curve of its run."""

from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyllm.config.compose import compose
from tinyllm.config.quoting import unquoted
from tinyllm.config.suggestions import listed, near
from tinyllm.config.targets import Option
from tinyllm.errors import UserError
from tinyllm.inference.conversing import RESULT, TEXT
from tinyllm.inference.generator import stream_text
from tinyllm.inference.sampling import Sampling
from tinyllm.programs.chat import open_conversation
from tinyllm.programs.load_model import model_of, open_saved
from tinyllm.runs.layout import METRICS, TEMPLATE
from tinyllm.runs.metrics_log import read_metrics
from tinyllm.studies.pipeline.plan import Chain, PlannedStage, digest_of
from tinyllm.studies.pipeline.recipe import Measure, Recipe
from tinyllm.studies.pipeline.results import Column, Sample
from tinyllm.utils.files import parse_json, read_json, read_text, write_json

MEASURES, SAMPLES = "measures", "samples"
"""Folders of what was measured, and of samples."""
CONTINUED = 120
"""Tokens of a continuation."""
VALIDATION = ("val/loss", "val/reward")
"""What the curve of a run shows, if its log has no metric of its own objective."""
OBJECTIVE = ("pref/", "rl/")
"""Beginnings of metrics that only single objectives have."""


def columns_of(recipe: Recipe) -> list[Column]:
    """Everything that the measures of a recipe show, in their order."""
    return [
        Column(name=name, metric=metric, measure=measure.name)
        for measure in recipe.measures
        for name, metric in measure.shows.items()
    ]


def measure_file(directory: Path, chain: Chain, stage: PlannedStage, measure: Measure) -> Path:
    """Where the result of a measure lies; its name says everything that it depends on."""
    return directory / MEASURES / f"{stage.path.name}_{measure.name}_{chain.measure_digest(measure)[:8]}.json"


def measure_arguments(chain: Chain, stage: PlannedStage, measure: Measure) -> list[str]:
    """The arguments of ``python -m tinyllm.evaluate``."""
    return [*stage.flags, *unquoted(chain.filled(measure.settings)), f"run={stage.path}", "--json"]


def read_result(file: Path) -> dict[str, Any] | None:
    """The JSON that a program printed into a file; None if it has not ended."""
    if not file.is_file():
        return None
    for line in reversed(read_text(file).splitlines()):
        with suppress(ValueError):
            found = parse_json(line, finite=False)
            if isinstance(found, dict):
                return found
    return None


def values_in(result: Mapping[str, Any], measure: Measure) -> dict[str, float]:
    """The figures that a measure shows.

    Raises:
        UserError: a metric is not among the results.
    """
    numbers = {name: value for name, value in result.items() if type(value) in (int, float)}
    for label, metric in measure.shows.items():
        if metric not in numbers:
            similar = near(metric, numbers)
            hint = (f"did you mean {similar[0]}? " if similar else "") + f"there are {listed(sorted(numbers))}"
            raise UserError("the evaluation has no such metric", file=f"{measure.name}: {label}: {metric}", hint=hint)
    return {label: float(numbers[metric]) for label, metric in measure.shows.items()}


def curve_of(stage: PlannedStage) -> tuple[str, list[tuple[int, float]]]:
    """The metric that shows best what a run learned, and its values by step.

    That is a metric of the objective's own validation, or else what every run logs: the loss of training.
    """
    records = read_metrics(stage.path / METRICS)
    for name in ("val/reward", "rl/reward", "pref/accuracy", "train/loss", "val/loss"):
        points = [(int(record["step"]), float(record[name])) for record in records if record.get(name) is not None]
        if len(points) > 1:
            return name, points
    return "val/loss", [(int(record["step"]), float(record["val/loss"])) for record in records if "val/loss" in record]


def samples_of(
    recipe: Recipe, stage: PlannedStage, directory: Path, *, config_dir: str | None, allow: frozenset[Option]
) -> list[Sample]:
    """What the model of a stage makes of the recipe's prompts, from the file of an earlier start or generated now.

    A model that was trained on conversations answers, every other one continues the text; the most likely token each
    time.

    Raises:
        UserError: the settings of ``chat`` do not fit the model.
    """
    if not recipe.prompts:
        return []
    wanted = digest_of([recipe.prompts, recipe.chat])[:8]
    file = directory / SAMPLES / f"{stage.path.name}_{wanted}.json"
    if not file.is_file():
        texts = _texts(recipe, stage, config_dir=config_dir, allow=allow)
        samples = [Sample(prompt=prompt, text=text) for prompt, text in zip(recipe.prompts, texts, strict=True)]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, [asdict(sample) for sample in samples])
    return [Sample(prompt=str(each["prompt"]), text=str(each["text"])) for each in read_json(file, of=list)]


def _texts(recipe: Recipe, stage: PlannedStage, *, config_dir: str | None, allow: frozenset[Option]) -> list[str]:
    saved = open_saved(stage.path, allow=allow)
    if TEMPLATE not in saved.chat:
        model = model_of(saved, allow=allow)
        greedy = Sampling(temperature=0.0)
        found = []
        for prompt in recipe.prompts:
            with closing(
                stream_text(model, saved.tokenizer, prompt, max_new_tokens=CONTINUED, sampling=greedy)
            ) as pieces:
                found.append("".join(piece.text for piece in pieces))
        return found
    settings = [*unquoted(recipe.chat), f"run={stage.path}", "temperature=0.0"]
    cfg = compose(*settings, program="chat", config_dir=config_dir)
    conversing = open_conversation(cfg, str(stage.path), allow=allow)
    found = []
    for prompt in recipe.prompts:
        conversing.reset()
        with closing(conversing.answer(prompt)) as answer:
            found.append(shown_answer(list(answer)))
    return found


def shown_answer(pieces: list[Any]) -> str:
    """An answer as ``chat`` shows it: calls of tools and their results stand in brackets."""
    shown = []
    for piece in pieces:
        mark = "= " if piece.kind == RESULT else ""
        shown.append(piece.text if piece.kind == TEXT else f"[{mark}{piece.text}] ")
    return "".join(shown)
