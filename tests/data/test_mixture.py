"""Mixtures: one tokenizer in the proportions of the weights, no text of any validation part in training, the plan."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.conftest import text_corpus
from tinyllm.data import prepare_mixture as module
from tinyllm.data.loader import train_batches
from tinyllm.data.mixture import Mixture
from tinyllm.data.mixture_data import MixtureData
from tinyllm.data.prepare_mixture import cached_mixture, prepare_mixture, repeated, repetitions
from tinyllm.data.run_data import train_sources
from tinyllm.data.sample_span import SampleSpan
from tinyllm.errors import UserError
from tinyllm.tokenizers.bpe import BPETrainer
from tinyllm.tokenizers.byte import ByteTrainer
from tinyllm.tokenizers.char import CharTrainer
from tinyllm.tokenizers.pretrained import FixedTrainer


def folder(place: Path, **texts: str) -> Path:
    place.mkdir()
    for name, text in texts.items():
        (place / f"{name}.txt").write_text(text)
    return place


def mixture(sources: dict[str, Any], weights: dict[str, float] | None = None, schedule: Any = None) -> Mixture:
    corpora = {name: text_corpus(path) if isinstance(path, Path) else path for name, path in sources.items()}
    return Mixture(sources=corpora, weights=weights, schedule=schedule)


@pytest.fixture
def two(tmp_path: Path) -> dict[str, Path]:
    """Twenty documents each; the second source has letters of its own."""
    first = {f"a{i}": f"first {i} " * 20 for i in range(20)}
    second = {f"b{i}": f"sÉcond {i} " * 30 for i in range(20)}
    return {"one": folder(tmp_path / "one", **first), "two": folder(tmp_path / "two", **second)}


def texts(data: MixtureData, side: str) -> dict[str, Counter[str]]:
    """The documents of a split of each source."""
    found = {}
    for name, split in data.splits(side).items():
        ids = split.read(0, split.n_tokens).tolist()
        ends = [i for i, token in enumerate(ids) if token == data.tokenizer.eot_id]
        starts = [0, *(end + 1 for end in ends)]
        found[name] = Counter(
            data.tokenizer.decode(ids[start:end]) for start, end in zip(starts, [*ends, len(ids)], strict=True)
        )
        del found[name][""]
    return found


def test_all_sources_have_one_tokenizer_that_knows_the_characters_of_all(two: dict[str, Path], tmp_path: Path) -> None:
    data = prepare_mixture(mixture(two), CharTrainer(), cache_dir=tmp_path / "cache")
    assert len({source.tokenizer.fingerprint() for source in data.sources.values()}) == 1
    assert set("firstsÉcond 0123456789") <= set(data.tokenizer.decode(range(data.tokenizer.vocab_size)))
    for name, counts in texts(data, "train").items():
        assert all(text.startswith({"one": "first", "two": "sÉcond"}[name]) for text in counts)
    assert data.shares()["two"] == pytest.approx(
        data.sources["two"].train.n_tokens / (data.sources["one"].train.n_tokens + data.sources["two"].train.n_tokens)
    )


def test_a_document_in_validation_of_one_source_is_not_trained_on_in_another(tmp_path: Path) -> None:
    shared = {f"s{i}": f"shared {i} " * 20 for i in range(30)}
    one = folder(tmp_path / "one", **shared)
    two = folder(tmp_path / "two", **shared, **{f"t{i}": f"other {i} " * 40 for i in range(30)})
    sources = {"one": one, "two": text_corpus(two, val_fraction=0.5)}  # holds out more of the shared texts than one
    data = prepare_mixture(mixture(sources), ByteTrainer(), cache_dir=tmp_path / "cache")
    train, val = texts(data, "train"), texts(data, "val")
    held_out = val["one"] | val["two"]
    assert not (train["one"] | train["two"]).keys() & held_out.keys()
    assert (train["one"] | train["two"] | held_out).keys() >= {text for text in shared.values()}
    assert any("in the validation part of another source" in note for note in data.notes)


def test_a_source_whose_text_another_validates_on_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words " * 200)
    with pytest.raises(UserError, match=r"all training documents are in the validation part.*sources\.a\.path"):
        prepare_mixture(mixture({"a": text, "b": text}), ByteTrainer(), cache_dir=tmp_path / "cache")


def test_weights_change_a_learned_tokenizer_and_no_other(
    two: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer from the cache is not trained again, also if the cache of the first source is gone."""
    cache = tmp_path / "cache"

    def prepared(weights: dict[str, float], trainer: Any) -> MixtureData:
        return prepare_mixture(mixture(two, weights), trainer, cache_dir=cache)

    bpe = BPETrainer(vocab_size=270, min_frequency=1, special_tokens=["<|endoftext|>"])
    mostly_one, mostly_two = (prepared({"one": w, "two": 1 - w}, bpe) for w in (0.99, 0.01))
    assert mostly_one.tokenizer.fingerprint() != mostly_two.tokenizer.fingerprint()
    words = [data.tokenizer.decode([token]) for data in (mostly_one, mostly_two) for token in range(257, 270)]
    assert "sÉcond" in "".join(words[13:]) and "sÉcond" not in "".join(words[:13])
    monkeypatch.setattr(module._Shared, "_learned", lambda self: pytest.fail("trained again"))
    again = prepared({"one": 198, "two": 2}, bpe)  # the same proportions
    assert again.fingerprints() == mostly_one.fingerprints()
    next(iter(again.sources.values())).path.rename(tmp_path / "gone")
    assert prepared({"one": 0.99, "two": 0.01}, bpe).fingerprints() == mostly_one.fingerprints()
    monkeypatch.undo()
    fixed = [prepared({"one": w, "two": 1}, FixedTrainer(mostly_one.tokenizer)) for w in (1, 2)]
    assert len({source.path for data in fixed for source in data.sources.values()}) == 2


def test_texts_are_repeated_in_the_proportions_of_the_weights() -> None:
    sizes, weights = {"a": 1_000_000, "b": 500_000, "c": 10}, {"a": 1, "b": 8, "c": 0}
    times = repetitions(weights, sizes)
    read = {
        name: sum(
            map(len, repeated(lambda size=size: ("x" * part for part in [size // 2, size - size // 2]), times[name]))
        )
        for name, size in sizes.items()
    }
    assert read["c"] == 0
    assert read["b"] == pytest.approx(8 * read["a"], rel=0.5)
    assert sum(read.values()) == pytest.approx(sum(sizes.values()), rel=0.1)
    assert list(repeated(lambda: ["a", "b"], 2)) == ["a", "b", "a", "b"]


def test_what_is_in_the_cache_is_found_without_building(two: dict[str, Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert cached_mixture(mixture(two), CharTrainer(), cache_dir=cache) is None
    data = prepare_mixture(mixture(two), CharTrainer(), cache_dir=cache)
    found = cached_mixture(mixture(two), CharTrainer(), cache_dir=cache)
    assert found is not None and found.fingerprints() == data.fingerprints()
    (two["two"] / "b3.txt").write_text("changed " * 9)
    assert cached_mixture(mixture(two), CharTrainer(), cache_dir=cache) is None


def planned(data: MixtureData, span: SampleSpan) -> tuple[list[int], np.ndarray]:
    """The changes of the weights, and the source of each sample."""
    order: Any = data.order(train_sources(data, seq_len=8, seed=0), span)
    return data.changes(span), order.interleaving.at(np.arange(span.total))[0]


@pytest.fixture
def scheduled(two: dict[str, Path], tmp_path: Path) -> Callable[..., MixtureData]:
    def prepared(*ats: float) -> MixtureData:
        weights = [{"one": 1.0, "two": 0.0}, {"one": 0.0, "two": 1.0}]
        schedule = [{"at": at, "weights": weights[(number + 1) % 2]} for number, at in enumerate(ats)]
        return prepare_mixture(mixture(two, weights[0], schedule), ByteTrainer(), cache_dir=tmp_path / "cache")

    return prepared


def test_a_schedule_is_followed_to_the_window(scheduled: Callable[..., MixtureData]) -> None:
    changes, sources = planned(scheduled(0.25, 0.5), SampleSpan(total=100, per_step=4))
    assert changes == [25, 50]
    assert sources.tolist() == [0] * 25 + [1] * 25 + [0] * 50
    changes, sources = planned(scheduled(3, 20), SampleSpan(total=100, per_step=4))
    assert changes == [12, 80]
    assert sources.tolist() == [0] * 12 + [1] * 68 + [0] * 20


def test_a_change_in_the_past_stays_where_it_was(scheduled: Callable[..., MixtureData]) -> None:
    """The horizon doubles after step 15: the change at half of it has taken place, the one at 0.9 moves."""
    data = scheduled(0.5, 0.9)
    before, sources = planned(data, SampleSpan(total=100, per_step=4))
    assert before == [50, 90]
    after, longer = planned(data, SampleSpan(total=200, per_step=4, step=15, sample=60, changes=tuple(before)))
    assert after == [50, 180]
    assert longer[:60].tolist() == sources[:60].tolist()
    shorter, _ = planned(data, SampleSpan(total=64, per_step=4, step=15, sample=60, changes=tuple(before)))
    assert shorter == [50, 60]


def test_a_step_counts_from_what_the_run_has_read(scheduled: Callable[..., MixtureData]) -> None:
    """After 10 steps of 4 samples the batch has 8: step 20 begins at sample 120."""
    span = SampleSpan(total=200, per_step=8, step=10, sample=40, changes=(80,))
    assert planned(scheduled(20), span)[0] == [120]


def test_a_change_after_the_end_is_refused(two: dict[str, Path]) -> None:
    mixed = mixture(two, None, [{"at": 25, "weights": {"one": 1, "two": 0}}])
    mixed.check_length(26)
    with pytest.raises(UserError, match=r"ends before the weights .*schedule\[0\]\.at=25\): the run has 25 steps"):
        mixed.check_length(25)


def test_the_plan_says_how_often_each_source_is_read(two: dict[str, Path], tmp_path: Path) -> None:
    data = prepare_mixture(mixture(two, {"one": 3, "two": 1}), ByteTrainer(), cache_dir=tmp_path / "cache")
    sources = train_sources(data, seq_len=8, seed=0)
    total = 8 * sources["one"].windows_per_epoch
    [note] = data.order_notes(sources, SampleSpan(total=total, per_step=4))
    other = 2 * sources["one"].windows_per_epoch / sources["two"].windows_per_epoch
    assert note == f"each source is read one 6×, two {other:.2g}× over the whole run"


def test_versions_of_the_sources_are_kept_and_pinned() -> None:
    class Versioned:
        def __init__(self, revision: str | None) -> None:
            self.revision, self.pinned = revision, None

        def pin(self, revision: str) -> None:
            self.pinned = revision

    sources = {"a": Versioned("1f2e"), "b": Versioned(None), "c": Versioned("99")}
    mixed = Mixture(sources=sources, weights=None, schedule=None)
    assert mixed.revision == "a=1f2e c=99"
    mixed.pin("a=0000 c=1111 gone=22")
    assert [source.pinned for source in sources.values()] == ["0000", None, "1111"]
    assert Mixture(sources={"b": sources["b"]}, weights=None, schedule=None).revision is None


@pytest.mark.slow
def test_ranks_and_workers_read_the_same_samples(scheduled: Callable[..., MixtureData]) -> None:
    """The samples of each step are the same on 1, 2 and 4 ranks, with and without workers, from any step on."""
    data = scheduled(0.25, 0.5)
    order = data.order(train_sources(data, seq_len=8, seed=0), SampleSpan(total=96, per_step=8))
    expected = order.batch(np.arange(96)).inputs.reshape(12, 8, 8)
    for world_size, workers, start in ((1, 0, 0), (2, 2, 0), (4, 0, 5), (2, 0, 3), (1, 2, 7)):
        size = 8 // world_size // 2
        of_rank = [
            [
                batch.inputs
                for batch in train_batches(
                    order,
                    start_step=start,
                    end_step=12,
                    batch_size=size,
                    grad_accum_steps=2,
                    rank=rank,
                    world_size=world_size,
                    workers=workers,
                )
            ]
            for rank in range(world_size)
        ]
        read = torch.cat([batch for batches in zip(*of_rank, strict=True) for batch in batches])
        assert torch.equal(read.reshape(12 - start, 8, 8), expected[start:])
