"""A run on conversations: exact resume, one loss however the batch is divided, evaluation, samples, files."""

from pathlib import Path

import pytest

from tests.support.chats import record, write_records
from tests.support.training_runs import SMALL, digest, metrics, train, train_elsewhere
from tinyllm.programs.conversations import saved_template
from tinyllm.programs.load_model import open_saved

CHAT = (
    *SMALL, "model.max_seq_len=256", "dataset=chat", "dataset.too_long=drop", "trainer.max_steps=4",
    "trainer.eval_every=2", "trainer.sample_every=4", "trainer.sample_tokens=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("chats") / "c.jsonl", [record(seed) for seed in range(60)])


@pytest.mark.slow
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(chats: Path, tmp_path: Path) -> None:
    data = f"dataset.path={chats}"
    assert train(*CHAT, data, f"run.dir={tmp_path / 'whole'}") == 0
    assert train(*CHAT, data, f"run.dir={tmp_path / 'parts'}", "trainer.stop_after_steps=2") == 0
    assert train(f"resume={tmp_path / 'parts'}", "trainer.stop_after_steps=null") == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    saved = open_saved(tmp_path / "whole")
    template = saved_template(saved)
    assert (tmp_path / "whole" / "chat_template.jinja").read_text(encoding="utf-8") == template.source
    template.require(saved.tokenizer)


@pytest.mark.slow
def test_the_loss_of_a_step_does_not_depend_on_micro_batches(chats: Path, tmp_path: Path) -> None:
    losses = []
    for size, steps in ((4, 1), (2, 2), (1, 4)):
        run = tmp_path / f"{size}"
        divided = (f"trainer.batch_size={size}", f"trainer.grad_accum_steps={steps}", "trainer.max_steps=2")
        assert train(*CHAT, *divided, f"dataset.path={chats}", f"run.dir={run}") == 0
        losses.append([(one["train/loss"], one["train/grad_norm"]) for one in metrics(run)])
    for other in losses[1:]:
        for ours, theirs in zip(losses[0], other, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-5)


@pytest.mark.slow
def test_two_ranks_give_the_loss_of_one(chats: Path, tmp_path: Path) -> None:
    losses = []
    for name, *divided in (("one", "trainer.batch_size=4"), ("two", "trainer.batch_size=2", "strategy=ddp")):
        ranks = ["strategy.nproc_per_node=2"] if name == "two" else []
        settings = (*CHAT, f"dataset.path={chats}", f"run.dir={tmp_path / name}", *divided, *ranks)
        with train_elsewhere(*settings) as process:
            _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        losses.append(metrics(tmp_path / name))
    for ours, theirs in zip(*losses, strict=True):
        for metric in ("train/loss", "train/grad_norm", "val/loss"):
            assert (metric in ours) == (metric in theirs)
            assert ours.get(metric, 0) == pytest.approx(theirs.get(metric, 0), rel=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, what",
    [
        (("curriculum.enabled=true",), "no curriculum of conversations"),
        (("dataset.too_long=cut",), "dataset.too_long=cut"),
        (("chat_template=seed", "trainer.seq_len=8"), "the chat template refuses a conversation"),
        (("tokenizer=ids",), "the data need special tokens such as <bos>"),
    ],
)
def test_refused(
    options: tuple[str, ...], what: str, chats: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = [one for one in CHAT if one.partition("=")[0] not in {key.partition("=")[0] for key in options}]
    code = train(*settings, f"dataset.path={chats}", f"run.dir={tmp_path / 'r'}", *options)
    err = capfd.readouterr().err
    assert code == 2 and err.startswith("error: ") and what in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "r").exists()
