"""Recipes: what they say, what a command line changes in them, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from tinyllm.config.cli.arguments import read
from tinyllm.errors import UserError
from tinyllm.studies.pipeline.command_line import read_stages
from tinyllm.studies.pipeline.recipe import PAIRS, Recipe, read_recipe, references, value_of

FILE = Path("mine.yaml")
GOOD: dict[str, Any] = {
    "settings": ["model=pico", "optimizer.lr=1e-3"],
    "stages": [
        {"name": "language", "settings": ["dataset=pydocs", "trainer.max_steps=4"]},
        {"name": "tools", "settings": ["dataset=tasks", "optimizer.lr=2e-3"]},
        {"name": "pairs", "program": "pairs", "settings": ["reward=[length]"]},
        {"name": "preference", "settings": ["objective=dpo", "dataset=preferences", "dataset.path=@pairs"]},
        {"name": "fresh", "init_from": None, "settings": ["dataset=pydocs"]},
    ],
    "measures": [{"name": "loss", "settings": ["dataset=pydocs"], "shows": {"bpb": "val/bpb"}, "since": "tools"}],
}


def recipe(**changes: Any) -> Recipe:
    return read_recipe(GOOD | changes, file=FILE)


def typed(*arguments: str) -> Recipe:
    """The recipe with the settings of a command line."""
    _, settings = read_stages(read(arguments))
    return recipe().with_settings(settings.shared, settings.of_stage)


def test_a_stage_begins_with_the_last_one_before_it_that_trains() -> None:
    starts = {stage.name: stage.init_from for stage in recipe().stages}
    assert starts == {"language": None, "tools": "language", "pairs": "tools", "preference": "tools", "fresh": None}


def test_a_stages_own_settings_win_over_those_of_all_and_the_command_line_over_both() -> None:
    stages = {stage.name: stage for stage in typed("optimizer.lr=3e-3", "stages.fresh.optimizer.lr=4e-3").stages}
    assert stages["language"].settings == ("model=pico", "dataset=pydocs", "trainer.max_steps=4", "optimizer.lr=3e-3")
    assert "optimizer.lr=3e-3" in stages["tools"].settings and "optimizer.lr=2e-3" not in stages["tools"].settings
    assert stages["fresh"].settings[-1] == "optimizer.lr=4e-3" and len(stages["fresh"].settings) == 3
    # a program that does not train has none of the settings of training
    assert stages["pairs"].program == PAIRS and stages["pairs"].settings == ("reward=[length]",)
    assert {s.settings[-1] for s in recipe().with_settings((), {}).stages} >= {"optimizer.lr=2e-3", "reward=[length]"}


def test_the_start_of_a_stage_can_be_typed() -> None:
    stages = {
        stage.name: stage for stage in typed("stages.fresh.init_from=tools", "stages.tools.init_from=null").stages
    }
    assert stages["fresh"].init_from == "tools" and stages["tools"].init_from is None
    assert not any("init_from" in setting for stage in stages.values() for setting in stage.settings)


def test_only_the_settings_of_training_reach_the_stages() -> None:
    for_hydra, settings = read_stages(read(["recipe=file", "seeds=2", "seed=5", "model=nano", "stages.a.logger=none"]))
    assert for_hydra == ["recipe=file", "seeds=2", "seed=5", "model=nano"]
    assert settings.shared == ("seed=5", "model=nano") and settings.of_stage == {"a": ["logger=none"]}


def test_references_to_stages() -> None:
    settings = recipe().stages[3].settings
    assert references(settings) == ["pairs"]
    assert value_of("dataset.path='a b'") == "a b" and value_of("key=") == ""


def test_until_leaves_out_later_stages_and_measures() -> None:
    assert [stage.name for stage in recipe().until("tools").stages] == ["language", "tools"]
    assert recipe().until("language").measures == () and len(recipe().until(None).stages) == 5


def changed(number: int, **keys: Any) -> dict[str, Any]:
    stages = [dict(stage) for stage in GOOD["stages"]]
    stages[number] |= keys
    return {"stages": stages}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": []}, "no stages (mine.yaml: stages)"),
        ({"stagse": []}, "unknown key stagse (mine.yaml: recipe): did you mean stages?"),
        ({"stages": ["language"]}, "not a stage (mine.yaml: stage 1)"),
        (changed(0, name="a b"), "no name (mine.yaml: stage 1)"),
        (changed(0, name="../up"), "no name (mine.yaml: stage 1)"),
        (changed(1, name="language"), "two stages of one name (mine.yaml: language)"),
        (changed(0, setings=[]), "unknown key setings (mine.yaml: stage 1): did you mean settings?"),
        (changed(2, program="pair"), "unknown program pair (mine.yaml: pairs): did you mean pairs?"),
        (changed(0, settings="dataset=pydocs"), "not a list of texts (mine.yaml: language)"),
        (changed(0, settings=["run.dir=x"]), "a stage cannot have this setting (mine.yaml: language: run.dir="),
        (changed(0, settings=["init_from=x"]), "a stage cannot have this setting (mine.yaml: language: init_from="),
        (changed(0, settings=["trainer.max_minutes=1"]), "set the length of a stage in steps"),
        (changed(0, settings=["hydra.run.dir=x"]), "a file must not change Hydra's own settings"),
        (changed(0, init_from="tools"), "a stage needs one that comes later (language: tools)"),
        (changed(3, settings=["dataset.path=@pears"]), "no such stage (preference=pears): did you mean pairs?"),
        (changed(2, init_from=None), "there is no model to sample from (pairs)"),
        ({"measures": [{"name": "a", "shows": {}}]}, "nothing to show (mine.yaml: a)"),
        ({"measures": [{"name": "a", "shows": {"b": "c"}, "since": "tool"}]}, "did you mean tools?"),
        ({"measures": [{"name": "a", "shows": {"b": "c"}, "settings": ["run=x"]}]}, "the pipeline sets this itself"),
        ({"measures": [{"name": n, "shows": {"b": "c"}} for n in "ab"]}, "two columns of one name (mine.yaml: b)"),
        ({"prompts": "Hi"}, "not a list of texts (mine.yaml: prompts)"),
    ],
)  # fmt: skip
def test_mistakes_in_a_recipe(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_recipe(GOOD | changes, file=FILE)
    assert said in str(refused.value), refused.value


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stages.tool.seq_len=3",), "no such stage (stages.tool.seq_len=tool): did you mean tools?"),
        (("stages.tools=3",), "which setting of which stage? (stages.tools=3)"),
        (("stages.tools.resume=auto",), "a stage cannot have this setting (stages.tools: resume="),
        (("stages.tools.init_from=fresh",), "a stage needs one that comes later (tools: fresh)"),
        (("init_from=x",), "this key cannot be set in a pipeline (init_from=x)"),
        (("experiment=tools",), "this key cannot be set in a pipeline (experiment=tools)"),
        (("run.dir=x",), "each stage has its own directory"),
        (("-m", "seed=1,2"), "flag not supported (-m): seeds=<number> repeats"),
    ],
)
def test_mistakes_on_the_command_line(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as refused:
        typed(*arguments)
    assert said in str(refused.value), refused.value
