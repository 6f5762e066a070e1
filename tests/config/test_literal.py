"""Free text reaches the program as it was typed."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import tinyllm
from tinyllm.config.literal import LITERAL_KEYS, quote, quote_literals
from tinyllm.errors import UserError

AWKWARD = [
    "Hello, world",
    "don't",
    'say "no"',
    "(is it)?",
    "a=b",
    "The ",
    " The",
    "\tThe\t",
    "",
    " ",
    "123",
    "1e5",
    "null",
    "true",
    "[1, 2]",
    "{a: b}",
    "${seed}",
    "\\${seed}",
    "\\\\${seed}",
    "${",
    "$",
    "\\",
    "\\\\",
    'a\\"b',
    "a\\",
    "ends with \\\\",
    "one\ntwo",
    "one\r\ntwo\n",
    "# no comment",
    "key: value",
    "choice(a,b)",
    "a,b",
    "range(1,3)",
    "~x",
    "+x",
    "@",
    "héllo žluť 你好 🙂",
    "‘’“”",
    "%s {0} !r",
    "'",
    "''",
    '""',
    "\u0085\u2028",
]


def arrives(key: str, text: str, program: str) -> object:
    """The text after Hydra's parser and OmegaConf's resolution."""
    cfg = tinyllm.compose(f"{key}={text}", program=program)
    return OmegaConf.select(cfg, key)


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_arrives(text: str) -> None:
    assert arrives("prompt", text, "generate") == text


@settings(max_examples=60, deadline=None)
@example("\\${a}")
@example('\\"${')
@given(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("\\${}\"',[]()= \n"))))
def test_any_text_arrives(text: str) -> None:
    assert arrives("prompt", text, "generate") == text


@pytest.mark.parametrize("key", ["trainer.sample_prompt", "run.name"])
def test_in_the_settings_of_training_too(key: str) -> None:
    text = "it's (a, b) = ${c} "
    if key in LITERAL_KEYS:
        assert arrives(key, text, "train") == text
    else:
        with pytest.raises(UserError, match="quote it twice"):
            arrives(key, text, "train")


def test_only_the_named_keys_are_quoted() -> None:
    line = ["prompt=a, b", "seed=1", "+prompt=1,2", "--cfg", "promptly=x", "prompt", "run.dir=x y"]
    assert quote_literals(line) == [
        'prompt="a, b"',
        "seed=1",
        "+prompt=1,2",
        "--cfg",
        "promptly=x",
        "prompt",
        'run.dir="x y"',
    ]


def test_quoting_is_one_string_of_the_grammar() -> None:
    assert quote('a"b') == '"a\\"b"'
    assert quote("${a}") == '"\\${a}"'
