"""Where a composition can start: a recipe, or the settings of an earlier run."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from tinyllm.config.cli.help import first_sentence
from tinyllm.config.quoting import unquoted
from tinyllm.config.saved import saved_settings
from tinyllm.runs.layout import CONFIG, OVERRIDES
from tinyllm.runs.listing import ListedRun
from tinyllm.studio.guard import check_arguments, check_path
from tinyllm.studio.program import Settings
from tinyllm.utils.text import shown_path

MOST_RUNS = 200
"""Newest runs that are offered."""


def starting_points(recipes: Mapping[str, str], runs: Iterable[ListedRun]) -> dict[str, str]:
    """Recipes, then runs, the newest first: what each is, by ``recipe:<name>`` or ``run:<path>``."""
    points = {f"recipe:{name}": f"Recipe {name} · {_short(meaning)}" for name, meaning in recipes.items()}
    newest = sorted(runs, key=lambda run: run.get("age") if run.get("age") is not None else float("inf"))
    return points | {f"run:{run.path}": f"Run {shown_path(run.path)}" for run in newest[:MOST_RUNS]}


def _short(meaning: str) -> str:
    """The first sentence, without the command that follows it in some files."""
    return first_sentence(meaning).partition(": python -m")[0]


def run_settings(run: Path, settings: Settings) -> list[str]:
    """The settings of an earlier run, as typed.

    Raises:
        UserError: they cannot be read, or a form may not set one of them.
    """
    check_path(str(run), settings, key="run")
    saved = saved_settings(run / OVERRIDES, config=run / CONFIG, config_dir=settings.config_dir)
    arguments = unquoted(saved)
    check_arguments(arguments, settings)
    return arguments
