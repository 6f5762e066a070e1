"""``init_from``: appended tokens get rows at the mean of the others, and any other difference is named."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tinyllm
from tests.support.training_runs import SMALL, train
from tinyllm.programs.saved_weights import GrownWeights, LoadedWeights, open_weights
from tinyllm.runs.layout import TOKENIZER
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers.appended import appended_tokens, first_difference, shown_token
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.tokenizers.char import CharTokenizer

SAVED = ("trainer.max_steps=1", "optimizer.lr=0")
NEW = "['<user>','<assistant>']"


@pytest.fixture(scope="module")
def base(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("base") / "run"
    settings = ["tokenizer=byte", "tokenizer.special_tokens=[]", "model.tie_embeddings=false"]
    assert train("dataset=text", corpus, *SMALL, *settings, "trainer.max_steps=3", f"run.dir={run}") == 0
    return run


def appended(base: Path, corpus: str, run: Path, *more: str) -> Any:
    settings = ["tokenizer=byte", f"tokenizer.special_tokens={NEW}", "model.tie_embeddings=false"]
    assert train("dataset=text", corpus, *SMALL, *SAVED, *settings, *more, f"init_from={base}", f"run.dir={run}") == 0
    return tinyllm.load(run)[0]


@pytest.mark.slow
def test_old_logits_keep_their_bits_and_new_rows_are_the_mean(base: Path, corpus: str, tmp_path: Path) -> None:
    old, tokenizer = tinyllm.load(base)
    new = appended(base, corpus, tmp_path / "run")
    n = tokenizer.vocab_size
    ids = torch.randint(n, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = old.logits(old(ids)), new.logits(new(ids))
    assert after.shape[-1] == n + 2
    assert torch.equal(after[..., :n], before)
    for name in ("embedding.weight", "head.weight"):
        rows = new.state_dict()[name]
        assert torch.equal(rows[:n], old.state_dict()[name])
        mean = old.state_dict()[name].double().mean(0)
        torch.testing.assert_close(rows[n:].double(), mean.expand(2, -1), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(after[..., n], before.mean(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_rows_of_a_padded_table(base: Path, corpus: str, tmp_path: Path) -> None:
    """Ids of new tokens overwrite rows that no token had; the other rows of the padding stay."""
    n = tinyllm.load(base)[1].vocab_size
    source = open_weights(base, key="init_from")
    padded = appended(base, corpus, tmp_path / "padded", f"model.vocab_size={n + 5}").state_dict()
    again = open_weights(tmp_path / "padded", key="init_from").grown(old=n + 2, new=n + 3, rows=n + 5).open()
    for name in ("embedding.weight", "head.weight"):
        mean = source.open().read(name).double().mean(0).float()
        assert torch.equal(padded[name][n:], mean.expand(5, -1))
        rows = again.read(name)
        assert torch.equal(rows[n + 3 :], padded[name][n + 3 :]) and torch.equal(rows[: n + 2], padded[name][: n + 2])
        assert torch.equal(rows[n + 2], padded[name][: n + 2].double().mean(0).float())
        assert torch.equal(again.read(name, slice(3, n + 4)), rows[3 : n + 4])


@pytest.mark.slow
def test_adapters_over_appended_tokens_are_refused(base: Path, corpus: str, call: Any) -> None:
    settings = ["tokenizer=byte", f"tokenizer.special_tokens={NEW}", "model.tie_embeddings=false", "lora=lora"]
    answer = call("train", "dataset=text", corpus, *SMALL, *settings, f"init_from={base}")
    assert answer.code == 2 and answer.made == [] and answer.err.count("\n") == 1
    assert answer.err.startswith(f"error: adapters cannot learn new tokens (init_from={base}): the rows of <user>, <as")


def test_grown_tables() -> None:
    """Two new tokens, of which one takes a row of the padding, in a table with one more row than tokens."""
    table, other = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.ones(2, 2)
    weights = GrownWeights(LoadedWeights({"embedding.weight": table, "x": other}), old=4, new=6, rows=7)
    grown, mean = weights.read("embedding.weight"), table[:4].double().mean(0).float()
    assert torch.equal(grown[:4], table[:4]) and torch.equal(grown[4:], mean.expand(3, -1))
    assert torch.equal(weights.read("embedding.weight", slice(3, 6)), grown[3:6])
    assert weights.read("x") is other and weights.shape("embedding.weight") == grown.shape


ALPHABET = "abc"


@pytest.mark.parametrize(
    ("new", "place", "there", "here"),
    [
        (CharTokenizer("abd", eot=True, unk=True), 2, "'c'", "'d'"),
        (CharTokenizer("ab", eot=True, unk=True), 2, "'c'", "<|endoftext|>"),
        (CharTokenizer("abc", eot=True, unk=False), 4, "<unk>", "nothing"),
        (CharTokenizer("abc", eot=True, unk=True, special=["<b>", "<a>"]), 5, "<a>", "<b>"),
        (ByteTokenizer(["<a>"]), 0, "'a'", r"'\x00'"),
    ],
)
def test_the_first_id_that_differs(new: Tokenizer, place: int, there: str, here: str) -> None:
    special = ["<a>"] if "<a>" in new.special else []
    old = CharTokenizer(ALPHABET, eot=True, unk=True, special=special)
    assert appended_tokens(old, new) is None
    assert first_difference(old, new) == place
    assert (shown_token(old, place), shown_token(new, place)) == (there, here)


def test_appended_tokens_in_their_order() -> None:
    old = CharTokenizer(ALPHABET, eot=True, unk=True)
    assert appended_tokens(old, old) == []
    assert appended_tokens(old, CharTokenizer(ALPHABET, eot=True, unk=True, special=["<b>", "<a>"])) == ["<b>", "<a>"]
    assert appended_tokens(CharTokenizer(ALPHABET, eot=True, unk=True, special=["<b>"]), old) is None


@pytest.mark.slow
def test_a_different_tokenizer_names_the_first_id(base: Path, corpus: str, call: Any) -> None:
    answer = call("train", "dataset=text", corpus, *SMALL, "tokenizer=char", f"init_from={base}")
    assert answer.code == 2 and answer.made == [] and answer.err.count("\n") == 1
    checkpoint = next((base / "checkpoints").glob("step-*"))
    assert r"id 0 is '\x00' there and '" in answer.err
    assert answer.err.endswith(f"use tokenizer=pretrained tokenizer.path={checkpoint / TOKENIZER}\n")
