"""Environment variables that launchers and batch systems leave behind."""

from unittest import mock

import pytest

from tests.support.fixtures import Call
from tinyllm.errors import UserError
from tinyllm.utils import environment

RANKS = ("strategy=ddp", "strategy.nproc_per_node=2")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("found", "processes", "rank"),
    [
        ({}, 0, 0),
        ({"WORLD_SIZE": ""}, 0, 0),
        ({"WORLD_SIZE": " ", "RANK": ""}, 0, 0),
        ({"WORLD_SIZE": "1"}, 0, 0),  # left behind by a batch system
        ({"WORLD_SIZE": "1", "RANK": "0"}, 0, 0),
        ({"RANK": "3"}, 0, 0),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, 1, 0),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, 2, 1),
    ],
)
def test_rank_and_number_of_processes(
    found: dict[str, str], processes: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    assert (environment.started_processes(), environment.rank()) == (processes, rank)
    assert environment.is_follower() == (rank > 0)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "2;", "²"])
def test_an_invalid_world_size_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(UserError, match=rf"\(WORLD_SIZE={value}\): must be a whole number ≥"):
        environment.started_processes()
    assert not environment.is_follower()


@pytest.mark.parametrize("value", ["", "1"])
def test_a_leftover_world_size_of_one_does_not_stop_the_launch(
    value: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    with mock.patch("tinyllm.programs.launch.train_in_processes", lambda arguments, nproc: started.append(nproc) or 0):
        assert call("train", *RANKS, WORLD_SIZE=value).code == 0
    assert started == [2]


@pytest.mark.parametrize("arguments", [(), RANKS, ("-m", "seed=1,2"), ("strategy=ddp",), ("strategy=single",)])
@pytest.mark.every(3)
def test_an_invalid_world_size_is_a_one_line_error(arguments: tuple[str, ...], call: Call) -> None:
    answer = call("train", *arguments, WORLD_SIZE="many")
    [line] = answer.err.splitlines()
    assert line.startswith("error: invalid value (WORLD_SIZE=many): ")
    assert (answer.code, answer.made) == (2, [])


def test_a_world_size_without_launcher_names_what_is_missing(call: Call) -> None:
    answer = call("train", WORLD_SIZE="2")
    assert answer.err == (
        "error: no launcher started this process (WORLD_SIZE=2): RANK is not set, which torchrun would set as well:"
        " start with torchrun, or unset WORLD_SIZE\n"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [(value, False) for value in ("", "0", "false", "False", "no", "off")]
    + [(value, True) for value in ("1", "true", "yes")],
)
@pytest.mark.every(4)
def test_tracebacks_are_shown_on_request(value: str, shown: bool, call: Call) -> None:
    assert ("Traceback" in call("train", "trainer.max_steps=-1", HYDRA_FULL_ERROR=value).err) == shown
    answer = call("train", "trainer.max_steps=-1", f"debug={value or 'false'}")
    assert ("Traceback" in answer.err) == shown
