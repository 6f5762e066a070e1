"""A tokenizer.json that would abort the process, or use unbounded time or memory, is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tokenizers.kinds import built
from tinyllm.errors import UserError
from tinyllm.tokenizers import load
from tinyllm.tokenizers.checks import repeats_within_repetition
from tinyllm.tokenizers.huggingface import HuggingFaceTokenizer
from tinyllm.tokenizers.pretrained import PretrainedTrainer
from tinyllm.tokenizers.splitting import RULES, bounded


def split(rule: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}


def replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def added(i: Any) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": i, "content": "<x>", **flags}


GROWS = {"type": "Sequence", "normalizers": [replace("a", "a" * 100)] * 3}
BPE: dict[str, Any] = {"type": "BPE", "vocab": {"a": 0, "é": 1, "aé": 2}, "merges": []}
HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an expression": lambda s: s.update(pre_tokenizer=split("(a+)+$")),
    "an expression with alternatives": lambda s: s.update(pre_tokenizer=split("(?:a|aa)*$")),
    "an expression in a normalizer": lambda s: s.update(
        normalizer={"type": "Replace", "pattern": {"Regex": "(x*)*y"}, "content": ""}
    ),
    "growth": lambda s: s.update(normalizer=GROWS),
    "growth of nothing": lambda s: s.update(
        normalizer={"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 500}
    ),
    "growth in front": lambda s: s.update(normalizer={"type": "Prepend", "prepend": "a" * 10_000}),
    "growth in decoding": lambda s: s.update(decoder=replace("a", "a" * 1_000_000)),
    "a large id": lambda s: s["added_tokens"].append(added(2**31)),
    "a larger id": lambda s: s["added_tokens"].append(added(2**64)),
    "a negative id": lambda s: s["model"]["vocab"].update(x=-1),
    "an id that is no number": lambda s: s["model"]["vocab"].update(x="7"),
    "a large id in the vocabulary": lambda s: s["model"]["vocab"].update(x=2**31),
    "a deep sequence": lambda s: None,
    "many parts": lambda s: s.update(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 1000}),
    "a merge of what is not there": lambda s: s["model"]["merges"].append(["q", "~~"]),
    "a merge of nothing": lambda s: s["model"]["merges"].append(["", "a"]),
    "a merge of three": lambda s: s["model"]["merges"].append(["a", "b", "c"]),
    "a merge that is no pair": lambda s: s["model"]["merges"].append(7),
    "a merge through a character": lambda s: s.update(
        model=BPE | {"merges": [["a", "é"]], "continuing_subword_prefix": "#"}
    ),
    "a merge shorter than the prefix": lambda s: s.update(
        model=BPE | {"merges": [["a", "é"]], "continuing_subword_prefix": "####"}
    ),
    "no model": lambda s: s.pop("model"),
    "no vocabulary": lambda s: s["model"].pop("vocab"),
    "a model that is a list": lambda s: s.update(model=[]),
    "a normalizer that is a text": lambda s: s.update(normalizer="NFC"),
    "a sequence without parts": lambda s: s.update(pre_tokenizer={"type": "Sequence"}),
    "added tokens that are none": lambda s: s.update(added_tokens=7),
    "an added token without an id": lambda s: s.update(added_tokens=[{"content": "x"}]),
    "a score that is no number": lambda s: s.update(model={"type": "Unigram", "unk_id": 0, "vocab": [["a", "b"]]}),
    "an unknown id that is none": lambda s: s.update(model={"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]]}),
    "long words": lambda s: s.update(
        model={"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "max_input_chars_per_word": 10**9}
        | {"continuing_subword_prefix": "##"}
    ),
    "pieces of no length": lambda s: s.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_harmful_files_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    state = json.loads(built("gpt2"))
    HOSTILE[case](state)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(state) if "deep" not in case else _deep(3000))
    for refuse in (lambda: load(file), PretrainedTrainer(path=str(file)).check):
        with pytest.raises(UserError) as caught:
            refuse()
        assert "\n" not in str(caught.value)
        assert str(file) in str(caught.value)
        assert len(str(caught.value)) < 1000


def _deep(depth: int) -> str:
    """JSON nested deeper than Python's encoder can write."""
    return (
        '{"model": {"vocab": {}}, "normalizer": ' + '{"type": "Sequence", "normalizers": [' * depth + "]}" * depth + "}"
    )


@pytest.mark.parametrize(
    "rule",
    [*RULES, bounded(256), r" ?[^(\s|[.,!?…。，、।۔،])]+", "[一-龥぀-ゟ゠-ヿ]+", r"(?:\r?\n)+", r"(ab)+c*", r"\(a+\)+"],
)
def test_published_rules_pass_the_regex_check(rule: str) -> None:
    assert not repeats_within_repetition(rule)


@pytest.mark.parametrize(
    "rule", ["(a+)+$", "(a*)*", "((a+))+", "(?:a|aa)*$", "((a+)b)+", "(a+){2,}", "([ab]+)+", r"(\s+)*x", "(a{2,1000})+"]
)
def test_exponential_regexes_are_found(rule: str) -> None:
    assert repeats_within_repetition(rule)


def test_library_errors_become_one_line() -> None:
    """Here, an unknown word without an unknown token."""
    state = json.loads(built("unigram"))
    state["model"]["unk_id"] = None
    tokenizer = HuggingFaceTokenizer.from_json(json.dumps(state))
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_measured([text])):
        with pytest.raises(UserError, match="failed on this text") as caught:
            encode("the 🦓")
        assert "\n" not in str(caught.value)
