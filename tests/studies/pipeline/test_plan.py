"""Plans: what makes a stage run again, and what does not; what is refused before anything runs."""

import os
from pathlib import Path

import pytest

from tests.support.fixtures import Call
from tests.support.pico_recipe import recipe, write_recipe
from tests.support.training_runs import write_corpus
from tinyllm.studies.pipeline.plan import Chain, Planner
from tinyllm.studies.pipeline.recipe import read_recipe
from tinyllm.studies.pipeline.results import Column, mean_text
from tinyllm.utils.locks import try_lock

SHORT = ("preference", "reward")


def planned(text: Path, out: Path, *, of_stage: dict[str, list[str]] | None = None, seed: int = 1) -> Chain:
    content = recipe(text)
    content["stages"] = content["stages"][:3]
    whole = read_recipe(content, file=Path("mine.yaml")).with_settings((), of_stage or {})
    return Planner(recipe=whole, directory=out, config_dir=None, allow=frozenset()).chain(seed)


def digests(chain: Chain) -> dict[str, str]:
    return {stage.name: stage.digest for stage in chain.stages}


@pytest.mark.slow
def test_what_changed_and_all_behind_it_run_again(tmp_path: Path) -> None:
    text = write_corpus(tmp_path / "words.txt")
    first = planned(text, tmp_path / "out")
    before = digests(first)
    assert digests(planned(text, tmp_path / "elsewhere")) == before  # where the stages lie does not matter
    assert [stage.path.name for stage in first.stages] == [f"{n}_s1_{d[:10]}" for n, d in before.items()]
    after = digests(planned(text, tmp_path / "out", of_stage={"tools": ["trainer.max_steps=4"]}))
    assert [name for name in before if before[name] != after[name]] == ["tools", "pairs"]
    after = digests(planned(text, tmp_path / "out", of_stage={"pairs": ["n_pairs=7"]}))
    assert [name for name in before if before[name] != after[name]] == ["pairs"]
    text.write_text(text.read_text() + " again", encoding="utf-8")  # the same path
    after = digests(planned(text, tmp_path / "out"))
    assert [name for name in before if before[name] != after[name]] == ["language", "tools", "pairs"]


@pytest.mark.slow
def test_commands_name_what_the_stages_before_have_made(tmp_path: Path) -> None:
    chain = planned(write_corpus(tmp_path / "words.txt"), Path("out"))
    language, tools, pairs = chain.stages
    assert f"init_from={language.path}" in tools.arguments and f"run.dir={tools.path}" in tools.arguments
    assert f"run={tools.path}" in pairs.arguments and f"out={pairs.path}/pairs.jsonl" in pairs.arguments
    assert "model=pico" in tools.arguments and "model=pico" not in pairs.arguments
    assert chain.filled(['dataset.path="@pairs"', "versus=@tools/checkpoints/last", "split=test"]) == [
        f'dataset.path="{pairs.path}/pairs.jsonl"', f'versus="{tools.path}/checkpoints/last"', "split=test"
    ]  # fmt: skip


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    file = write_recipe(tmp_path / "mine.yaml", recipe(write_corpus(tmp_path / "words.txt")), without=("pairs", *SHORT))
    return ["recipe=file", f"recipe.path={file}"]


@pytest.mark.slow
def test_a_dry_run_shows_the_plan_and_makes_nothing(given: list[str], call: Call) -> None:
    answer = call("pipeline", *given, "dry_run=true", "seeds=2")
    assert answer.code == 0 and answer.made == [], answer
    lines = answer.out.splitlines()
    assert lines[0].split() == ["stage", "seed", "program", "from", "steps", "tokens", "FLOPs", "state", "directory"]
    assert [line.split()[:3] for line in lines[1:5]] == [
        [name, seed, "train"] for seed in ("1,337", "1,338") for name in ("language", "tools")
    ]
    assert (
        lines[2].split()[3:6] == ["language", "3", "1,152"] and "outputs/pipeline/mine/stages/tools_s1337" in lines[2]
    )
    assert lines[5].startswith("4 of 4 stages to run, at most ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("recipe=asistant",), "error: no such option (recipe=asistant): did you mean assistant?"),
        (("until=tool",), "error: no such stage (until=tool): did you mean tools?"),
        pytest.param(
            ("recipe=file", "recipe.path=none.yaml"),
            "error: no such recipe (recipe.path=none.yaml)",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("stages.tools.optimizer.beta=1",),
            "error: unknown key (optimizer.beta=1): did you mean",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], said: str, given: list[str], call: Call) -> None:
    answer = call("pipeline", *(() if arguments[0].startswith("recipe") else given), *arguments)
    assert answer.code == 2 and said in answer.err and len(answer.err.splitlines()) == 1, answer
    assert answer.made == []


@pytest.mark.slow
def test_two_pipelines_in_one_folder(given: list[str], call: Call, tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "out" / ".lock")
    assert lock is not None
    answer = call("pipeline", *given, f"out={tmp_path / 'out'}")
    os.close(lock)
    assert answer.code == 2 and "another process uses this directory" in answer.err, answer
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


@pytest.mark.slow
def test_a_folder_of_something_else_is_not_written_to(given: list[str], call: Call, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("mine", encoding="utf-8")
    answer = call("pipeline", *given, f"out={tmp_path / 'out'}")
    assert answer.code == 2 and "it holds diary.txt and no study" in answer.err, answer


@pytest.mark.parametrize(
    ("metric", "values", "shown"),
    [
        ("task/exact", [0.5], "50.0%"),
        ("task/pass@8", [0.5, 0.75, 1.0], "75.0 ± 25.0%"),
        ("val/bpb", [2.0], "2"),
        ("val/bpb", [1.0, 3.0], "2 ± 1.4"),
        ("win/rate", [], ""),
    ],
)
def test_means_over_seeds(metric: str, values: list[float], shown: str) -> None:
    assert mean_text(values, Column(name="a", metric=metric, measure="b")) == shown
