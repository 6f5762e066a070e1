"""Tasks tell compositions apart: what has the parts for a task learns it with the default settings, what lacks one does
not."""

from pathlib import Path

import pytest

import tinyllm
from tinyllm.studies.probes.probing import Trials
from tinyllm.studies.probes.results import Score, Shelf

pytestmark = pytest.mark.slow


def scores(place: Path, *settings: str) -> dict[str, Score]:
    cfg = tinyllm.compose(*settings, program="probe")
    [(probe, _)] = Trials(cfg, typed=frozenset(), allow=frozenset()).run(Shelf(place))
    return probe.scores


@pytest.mark.parametrize("task", ["recall", "induction"])
def test_attention_over_the_whole_sequence_learns(task: str, tmp_path: Path) -> None:
    found = scores(tmp_path, f"tasks=[{task}]")[task]
    assert found.accuracy > 0.9
    assert found.low > 2 * found.chance


def test_what_lies_beyond_every_window_cannot_be_recalled(tmp_path: Path) -> None:
    """Two layers with a window of 2 see the last 3 positions: no pair from a question that stands later."""
    found = scores(tmp_path, "tasks=[recall]", "model.block.attn.window=2")["recall"]
    assert found.accuracy < 2 * found.chance


def test_one_layer_has_nothing_to_build_an_induction_head_on(tmp_path: Path) -> None:
    found = scores(tmp_path, "tasks=[induction]", "model.n_layers=1")["induction"]
    assert found.accuracy < 2 * found.chance
