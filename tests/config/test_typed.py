"""Values are read by the types of their keys: text as typed, whole numbers in all notations."""

import dataclasses
from typing import Any

import pytest
from omegaconf import OmegaConf

import tinyllm
from tinyllm.config import schema
from tinyllm.config.grammar import split
from tinyllm.config.quoting import LITERAL_KEYS, PATH_KEYS, conformed, kind_of, quote_literals, unquoted
from tinyllm.errors import UserError
from tinyllm.utils.text import whole_number

TEXTS = (
    *("2024_01", "1e3", "010", "0x10", "1.0", "yes", "true", "nul", "~", "2024-01-01", "12:30:45", " a ", "a, b"),
    *("it's (a)", "[x]", "{y", "#1", "a=b", "-1", "inf", "é", "a\\b", "100%", "choice(a,b)", "@x", "a: b"),
)
WHOLE = {"1e3": 1000, "1_000": 1000, "2**19": 524288, "2.5e3": 2500, "+7": 7, " 12 ": 12, "2 ** 3": 8, "1e0": 1}


def value_of(key: str, value: str, *more: str, program: str = "train") -> Any:
    return OmegaConf.select(tinyllm.compose(*more, f"{key}={value}", program=program), key)


def test_text_is_kept_as_typed() -> None:
    keys = ("run.name", "logger.notes", "logger.group", "logger.name", "logger.project")
    for begin in range(0, len(TEXTS), len(keys)):
        given = dict(zip(keys, TEXTS[begin:], strict=False))
        cfg = tinyllm.compose("logger=wandb", *(f"{key}={text}" for key, text in given.items()))
        assert {key: OmegaConf.select(cfg, key) for key in given} == given


TEXT_KEYS = sorted(
    {(program, key) for program, root in schema.SCHEMAS.items() for key, one in schema.fields_of(root)
     if kind_of(one.type, one.metadata) in ("text", "text or null")}
)  # fmt: skip


@pytest.mark.parametrize("key", sorted({key for _, key in TEXT_KEYS}))
def test_every_text_key_keeps_text_as_typed(key: str) -> None:
    for text in TEXTS:
        if key in PATH_KEYS and text.startswith("~"):
            continue  # ~ expands to the home directory
        [quoted] = quote_literals([f"{key}={text}"])
        [again] = quote_literals(unquoted([quoted]))
        assert again == quoted
        assert arrived(quoted) == text


def arrived(quoted: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OmegaConf.create({"text": OverridesParser.create().parse_override(quoted).value()}).text


def test_a_key_means_the_same_in_all_programs() -> None:
    kinds: dict[str, set[str]] = {}
    for root in schema.SCHEMAS.values():
        for key, one in schema.fields_of(root):
            kinds.setdefault(key, set()).add(kind_of(one.type, one.metadata).removesuffix(" or null"))
    assert {key: found for key, found in kinds.items() if len(found) > 1} == {}
    assert all("text" in kinds[key] for key in LITERAL_KEYS & kinds.keys() - {"stop"})


def test_null_and_interpolations_are_kept_where_they_make_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    assert value_of("run.name", "null") is None
    assert value_of("logger.group", "null", "logger=wandb") is None
    monkeypatch.setenv("WHO", "2024_01")
    assert value_of("logger.name", "${oc.env:WHO}, ${seed}", "logger=wandb") == "2024_01, 1337"


def test_lists_of_texts_are_kept_as_typed() -> None:
    assert value_of("logger.tags", "[2024_01, a b,1e3,it's]", "logger=wandb") == ["2024_01", "a b", "1e3", "it's"]
    assert value_of("tokenizer.special_tokens", '[1,"a, b"]', "tokenizer=bpe") == ["1", "a, b"]


def test_commas_separate_values_in_a_multirun() -> None:
    line = ["run.name=2024_01,b", "init_from=a (1),b", "trainer.max_steps=1e3,20", "hydra.sweep.dir=x, 010"]
    assert quote_literals(line, multirun=True) == [
        'run.name="2024_01",b',
        'init_from="a (1)",b',
        "trainer.max_steps=1000,20",
        'hydra.sweep.dir="x, 010"',
    ]
    assert quote_literals(["logger.name=1e3,b c"], multirun=True) == ['logger.name="1e3",b c']
    assert split("a,choice(b,c),'d,e'") == ["a", "choice(b,c)", "'d,e'"]


COUNTING = ("trainer.max_tokens", "model.d_ff", "trainer.total_batch_tokens", "objective.chunk_tokens")


def test_whole_numbers_in_all_notations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOW_MANY", "1e3")
    for text, number in WHOLE.items() | {("${oc.env:HOW_MANY}", 1000)}:
        cfg = tinyllm.compose(*(f"{key}={text}" for key in COUNTING))
        found = [OmegaConf.select(cfg, key) for key in COUNTING]
        assert found == [number] * len(COUNTING)
        assert {type(one) for one in found} == {int}
    for text in ("1.5", "10k", "1e-3", "2**64", "9**99", "1e400", "2**-1", "__import__('os')", "²"):
        assert whole_number(text) is None
    for key, text in zip(COUNTING[:2], ("1.5", "10k"), strict=True):
        with pytest.raises(UserError, match="must be a whole number") as refused:
            value_of(key, text)
        assert refused.value.key == key


def test_numbers_in_lists_and_unions_are_converted() -> None:
    assert value_of("widths", "[1e2,2**8]", program="coord_check") == [100, 256]
    assert value_of("schedule.warmup_steps", "1e2") == 100
    assert value_of("schedule.warmup_steps", "0.5") == 0.5


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optimizer.lr", "3e-4", 3e-4),
        ("optimizer.lr", "1", 1),
        ("trainer.grad_clip", "0.5", 0.5),
        ("model.d_model", "64", 64),
        ("model.bias", "true", True),
        ("trainer.deterministic", "false", False),
        ("trainer.deterministic", "auto", "auto"),
        ("trainer.precision", "bf16", "bf16"),
        ("seed", "7", 7),
    ],
)
@pytest.mark.every(3)
def test_values_from_the_environment_are_converted(
    key: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIVEN", text)
    found = value_of(key, "${oc.env:GIVEN}")
    assert (found, type(found)) == (value, type(value))
    if not isinstance(value, str | bool):
        monkeypatch.setenv("GIVEN", "many")
        with pytest.raises(UserError) as refused:
            value_of(key, "${oc.env:GIVEN}")
        assert refused.value.key == key


def test_lists_from_the_environment_are_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BETA", "0.8")
    assert value_of("optimizer.betas", "[${oc.env:BETA},0.9]") == [0.8, 0.9]


def test_values_of_a_wrong_type_are_left_alone() -> None:
    for value, annotation in ((1.5, int), ("x", float), ({"a": 1}, dict), (None, int | None), ("1", str), (2.0, float)):
        assert conformed(value, annotation) is value
    assert whole_number("") is None and whole_number("1__0") is None
    assert dataclasses.is_dataclass(schema.TrainConfig)
