"""Tasks tell compositions apart: with the default settings, only those with the necessary parts learn a task."""

from pathlib import Path

import pytest

import tinyllm
from tinyllm.studies.probes.results import ResultCache, Score
from tinyllm.studies.probes.trials import Trials

pytestmark = pytest.mark.slow


def scores(directory: Path, *settings: str) -> dict[str, Score]:
    cfg = tinyllm.compose(*settings, program="probe")
    [(probe, _)] = Trials(cfg, typed=frozenset(), allow=frozenset()).run(ResultCache(directory))
    return probe.scores


@pytest.mark.parametrize("task", [pytest.param("recall", marks=pytest.mark.exhaustive), "induction"])
def test_full_attention_learns(task: str, tmp_path: Path) -> None:
    score = scores(tmp_path, f"tasks=[{task}]")[task]
    assert score.accuracy > 0.9
    assert score.low > 2 * score.chance


@pytest.mark.exhaustive
def test_tokens_outside_every_window_cannot_be_recalled(tmp_path: Path) -> None:
    """Two layers with a window of 2 see only the last 3 positions, so later questions do not reach the pairs."""
    score = scores(tmp_path, "tasks=[recall]", "model.block.attn.window=2")["recall"]
    assert score.accuracy < 2 * score.chance


@pytest.mark.exhaustive
def test_one_layer_cannot_form_an_induction_head(tmp_path: Path) -> None:
    score = scores(tmp_path, "tasks=[induction]", "model.n_layers=1")["induction"]
    assert score.accuracy < 2 * score.chance
