"""A mixture in the programs: train, resume, evaluate, generate, prepare, describe, replay, on ranks and workers."""

import io
import json
from pathlib import Path

import pytest

from tests.support.chats import record, write_records
from tests.support.fixtures import Call
from tests.support.training_runs import SMALL, digest, metrics, train, write_corpus

SHARES = {"one": 0.7, "two": 0.25, "three": 0.05}
CHANGE = "dataset.schedule=[{at:5,weights:{one:0,two:1,three:3}}]"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The settings of a mixture of three texts."""
    place = tmp_path_factory.mktemp("sources")
    words = [("one", 3000), ("two", 1500), ("three", 600)]
    paths = [write_corpus(place / f"{name}.txt", n_words=n, seed=n) for name, n in words]
    described = ",".join(f'{path.stem}:"dataset=text dataset.path={path}"' for path in paths)
    weights = ",".join(f"{name}:{share}" for name, share in SHARES.items())
    return ("dataset=mixture", f"dataset.sources={{{described}}}", f"dataset.weights={{{weights}}}")


STEPS = ("trainer.max_steps=8", "trainer.eval_every=4", "schedule=constant")


@pytest.mark.slow
def test_validation_is_the_weighted_mean_of_the_sources_and_evaluate_gives_the_same(
    data: tuple[str, ...], tmp_path: Path, call: Call
) -> None:
    assert train(*SMALL, *data, *STEPS, f"run.dir={tmp_path / 'run'}") == 0
    last = metrics(tmp_path / "run")[-1]
    for metric in ("loss", "bpb"):
        mean = sum(share * last[f"val/{source}/{metric}"] for source, share in SHARES.items())
        assert last[f"val/{metric}"] == pytest.approx(mean, rel=1e-12)
    answer = json.loads(call("evaluate", f"run={tmp_path / 'run'}", "checkpoint=last", "--json").out)
    assert {key: answer[key] for key in last if key.startswith("val/")} == {
        key: value for key, value in last.items() if key.startswith("val/")
    }


@pytest.mark.slow
def test_a_run_with_a_schedule_resumes_bitwise_on_workers_and_is_replayed(
    data: tuple[str, ...], tmp_path: Path, call: Call
) -> None:
    """Stopped before and after the weights change, the second part with two workers."""
    settings = (*SMALL, *data, CHANGE, *STEPS)
    assert train(*settings, f"run.dir={tmp_path / 'whole'}") == 0
    for stop in (3, 6):
        run = tmp_path / f"parts{stop}"
        assert train(*settings, f"trainer.stop_after_steps={stop}", f"run.dir={run}") == 0
        assert train(f"resume={run}", "trainer.stop_after_steps=null", "dataloader.workers=2") == 0
        assert digest(run) == digest(tmp_path / "whole")
    replayed = call("replay", str(tmp_path / "whole"))
    assert replayed.code == 0, replayed


KILLS = ("trainer.max_steps=8", "trainer.checkpoint_every=2", "--json")


@pytest.mark.slow
def test_kills_do_not_change_a_run(data: tuple[str, ...], call: Call) -> None:
    answer = call("verify_resume", *SMALL, *data, CHANGE, "kills=3", *KILLS)
    assert answer.code == 0, answer
    assert json.loads(answer.out)["equal"]


@pytest.mark.slow
def test_nor_one_of_packed_documents_that_workers_read(tmp_path: Path, call: Call) -> None:
    for number in range(30):
        write_corpus(tmp_path / f"{number}.txt", n_words=10 + 3 * number, seed=number)
    data = ("dataset=text", f"dataset.path={tmp_path}", "dataset.packing=best_fit", "model.document_mask=true")
    answer = call("verify_resume", *SMALL, *data, "dataloader.workers=2", "kills=1", *KILLS)
    assert answer.code == 0, answer
    assert json.loads(answer.out)["equal"]


@pytest.mark.slow
def test_the_other_programs_know_mixtures(data: tuple[str, ...], tmp_path: Path, call: Call) -> None:
    assert train(*SMALL, *data, *STEPS, f"run.dir={tmp_path / 'run'}") == 0
    shown = call("prepare", *data, "--stats")
    assert shown.code == 0 and all(name in shown.out for name in SHARES)
    told = json.loads(call("prepare", *data, "--stats", "--json").out)
    assert list(told["sources"]) == list(told["stats"]) == list(SHARES)
    assert told["train tokens"] == sum(source["train tokens"] for source in told["sources"].values())
    vocabulary = json.loads(call("describe", *SMALL, *data, "--json").out)["model"]["vocabulary"]
    assert vocabulary == told["vocabulary"]
    generated = call("generate", f"run={tmp_path / 'run'}", "quantize=int8", "max_new_tokens=4")
    assert generated.code == 0 and "held-out tokens" in generated.err
    checked = call("coord_check", *data, "widths=[16,32]", "steps=2", "seeds=1", "trainer.seq_len=16")
    assert checked.code in (0, 1), checked  # 1: the widths disagree
    for split in ("val", "train"):
        assert f"{split}/three/loss" in call("evaluate", f"run={tmp_path / 'run'}", f"split={split}").out
    refused = call("evaluate", f"run={tmp_path / 'run'}", "split=test")
    assert refused.code == 2 and "no test split" in refused.err


@pytest.mark.slow
def test_conversations_and_packed_text_resume_bitwise_and_are_evaluated_and_talked_to(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replay of an earlier stage: a text of whole documents, one of cut ones, and conversations, on two workers."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(12):
        write_corpus(folder / f"{number}.txt", n_words=20 + 9 * number, seed=number)
    cut = write_corpus(tmp_path / "cut.txt", seed=99)
    chats = write_records(tmp_path / "c.jsonl", [record(seed) for seed in range(60)])
    described = (
        f'whole:"dataset=text dataset.path={folder} dataset.packing=best_fit",cut:"dataset=text dataset.path={cut}",'
        f'chat:"dataset=chat dataset.path={chats} dataset.packing=best_fit dataset.too_long=drop"'
    )
    settings = (
        *SMALL, "dataset=mixture", f"dataset.sources={{{described}}}", "dataset.weights={whole:1,cut:1,chat:2}",
        "dataset.schedule=[{at:4,weights:{whole:2,cut:0,chat:2}}]", "tokenizer=bpe", "tokenizer.vocab_size=330",
        "model.max_seq_len=192", "model.document_mask=true", "trainer.max_steps=6", "trainer.eval_every=3",
        "trainer.sample_every=6", "trainer.sample_tokens=3", "schedule=constant",
    )  # fmt: skip
    whole, parts = tmp_path / "run", tmp_path / "parts"
    assert train(*settings, f"run.dir={whole}") == 0
    assert train(*settings, f"run.dir={parts}", "trainer.stop_after_steps=2") == 0
    assert train(f"resume={parts}", "trainer.stop_after_steps=null", "dataloader.workers=2") == 0
    assert digest(parts) == digest(whole) and metrics(parts) == metrics(whole)
    notes = json.loads((whole / "run.json").read_text(encoding="utf-8"))["info"]["notes"]
    packed = [note.partition(":")[0] for note in notes if "dataset.packing=best_fit" in note]
    assert packed == ["whole", "chat"] and any("each source is read whole" in note for note in notes)
    last = metrics(whole)[-1]
    answer = json.loads(call("evaluate", f"run={whole}", "checkpoint=last", "--json").out)
    for source in ("whole", "cut", "chat"):
        assert answer[f"val/{source}/loss"] == last[f"val/{source}/loss"] > 0
    monkeypatch.setattr("sys.stdin", io.StringIO("what is the sum\n"))
    assert call("chat", f"run={whole}", "max_new_tokens=3").code == 0


@pytest.mark.slow
def test_changed_data_and_weights_are_refused_and_moved_data_are_not(
    data: tuple[str, ...], tmp_path: Path, call: Call
) -> None:
    texts = {name: write_corpus(tmp_path / f"{name}.txt", seed=number) for number, name in enumerate("ab")}

    def described(place: Path) -> str:
        return "dataset.sources={" + ",".join(f'{n}:"dataset=text dataset.path={place}/{n}.txt"' for n in texts) + "}"

    run = tmp_path / "run"
    settings = (*SMALL, "dataset=mixture", described(tmp_path), *STEPS, "trainer.max_steps=2", f"run.dir={run}")
    assert train(*settings) == 0
    more = "trainer.max_steps=3"
    weights = call("train", f"resume={run}", more, "dataset.weights={a:1,b:2}")
    assert weights.code == 2 and "a resumed run cannot change dataset.weights" in weights.err
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in texts.values():
        path.rename(moved / path.name)
    gone = call("train", f"resume={run}", more)
    assert gone.code == 2 and "dataset.sources.a.path=" in gone.err and "set dataset.sources=… to where" in gone.err
    assert call("train", f"resume={run}", more, described(moved)).code == 0
    (moved / "b.txt").write_text("the of and " * 500)
    changed = call("train", f"resume={run}", "trainer.max_steps=4")
    assert changed.code == 2 and "the train split of the source b differs" in changed.err
