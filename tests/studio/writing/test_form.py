"""Fields as typed become the settings of generate, and wrong ones are refused in its words."""

import shlex
from pathlib import Path
from typing import Any

import pytest

import tinyllm
from tests.support.fixtures import Call
from tinyllm.errors import UserError
from tinyllm.inference.sampling import Sampling
from tinyllm.inference.tools.expression import Calculator
from tinyllm.studio.writing.form import (
    KEYS,
    chat_command_of,
    command_of,
    help_texts,
    settings_of,
    tool_named,
    tools,
)
from tinyllm.studio.writing.pieces import Settings

WRONG = {
    "temperature": "abc",
    "top_k": "1.5",
    "top_p": "2",
    "min_p": "-1",
    "repetition_penalty": "0",
    "seed": "-1",
    "max_new_tokens": "0",
}


def test_empty_fields_are_the_defaults_of_generate() -> None:
    cfg = tinyllm.compose(program="generate")
    settings = settings_of(dict.fromkeys(KEYS, ""))
    assert settings == Settings(sampling=Sampling(), seed=cfg.seed, max_new_tokens=cfg.max_new_tokens)
    assert settings == settings_of({})
    assert help_texts()["temperature"][0] == "0.8" and "surprising" in help_texts()["temperature"][1]


def test_fields_are_read_as_on_the_command_line() -> None:
    fields = {"temperature": " 1.5", "top_k": "1e1", "top_p": ".5", "min_p": "0.1", "repetition_penalty": "2"}
    settings = settings_of(fields | {"seed": "7", "max_new_tokens": "3", "stop": r"a\n\n"})
    sampling = Sampling(temperature=1.5, top_k=10, top_p=0.5, min_p=0.1, repetition_penalty=2.0)
    assert settings == Settings(sampling=sampling, seed=7, max_new_tokens=3, stop="a\n\n")
    assert settings_of({"stop": "x"}, chat=True).stop is None, "chat has no stop strings"


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_field_is_refused_in_the_words_of_the_command_line(key: str, call: Call) -> None:
    with pytest.raises(UserError) as refused:
        settings_of({key: WRONG[key]})
    assert refused.value.key == key
    if key in ("temperature", "top_p", "seed"):  # of the schema, of the sampler, out of range: the rest is alike
        assert call("generate", "run=x", f"{key}={WRONG[key]}").err == f"error: {refused.value}\n"


@pytest.mark.parametrize("value", ["1 run=/etc", "1,2", "${oc.env:HOME}", "{a:1}", "1' hydra.run.dir=x"])
def test_a_field_sets_nothing_but_its_key(value: str) -> None:
    with pytest.raises(UserError) as refused:
        settings_of({"seed": value})
    assert refused.value.key == "seed"


def test_a_text_field_is_never_interpolated() -> None:
    assert settings_of({"stop": "${oc.env:HOME}"}).stop == "${oc.env:HOME}"


def test_commands_can_be_pasted_into_a_shell() -> None:
    fields: dict[str, Any] = {"temperature": "0.5", "stop": r"\n", "seed": ""}
    words = shlex.split(command_of(Path("out puts/a"), "step-000002", fields, prompt="it's\n$HOME"))
    assert words[1:] == [
        *("-m", "tinyllm.generate", "run=out puts/a", "checkpoint=step-000002", "prompt=it's\n$HOME"),
        *("temperature=0.5", "stop=\n"),
    ]
    words = shlex.split(chat_command_of(Path("a"), "step-000002", fields, system="Be brief.", tool="calculator"))
    assert words[3:] == ["run=a", "checkpoint=step-000002", "system=Be brief.", "tools=calculator", "temperature=0.5"]


def test_tools_come_from_option_files(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    target = "_target_: tinyllm.inference.tools.expression.Calculator\nmax_calls: 9\n"
    (tmp_path / "tools" / "mine.yaml").write_text(f"# @package tools\n{target}")
    assert tools(None) == ["none", "calculator", "python_expression"]
    assert tools(tmp_path) == ["none", "calculator", "mine", "python_expression"]
    assert tool_named("none", None) is None and isinstance(tool_named("calculator", None), Calculator)
    mine = tool_named("mine", tmp_path)
    assert mine is not None and mine.max_calls == 9
    for name in ("mine", "../chat", "/etc/passwd", "calculator,none", "{_target_:os.system}"):
        with pytest.raises(UserError, match="no such tool"):
            tool_named(name, None)
