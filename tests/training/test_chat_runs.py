"""A run on conversations: exact resume, one loss however the batch is divided, evaluation, samples, files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from tests.support.chats import record, write_records
from tests.support.copies import largest_difference, run, tensors
from tests.support.training_runs import SMALL, digest, metrics, train
from tinyllm.data.batch import WindowSource
from tinyllm.data.run_data import make_source
from tinyllm.nn.loss import IGNORE
from tinyllm.programs.builders import open_corpus, open_data
from tinyllm.programs.conversations import saved_template
from tinyllm.programs.load_model import open_saved
from tinyllm.utils.seeds import derive_seed

CHAT = (
    *SMALL, "model.max_seq_len=256", "dataset=chat", "dataset.too_long=drop", "trainer.max_steps=4",
    "trainer.eval_every=2", "trainer.sample_every=4", "trainer.sample_tokens=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("chats") / "c.jsonl", [record(seed) for seed in range(60)])


PACKED = ("dataset.packing=best_fit", "model.document_mask=true")
FILLINGS = pytest.mark.parametrize("filling", [(), PACKED], ids=["rows", "packed"])


@pytest.mark.slow
@FILLINGS
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    filling: tuple[str, ...], chats: Path, tmp_path: Path
) -> None:
    settings = (*CHAT, *filling, f"dataset.path={chats}")
    assert train(*settings, f"run.dir={tmp_path / 'whole'}") == 0
    assert train(*settings, f"run.dir={tmp_path / 'parts'}", "trainer.stop_after_steps=2") == 0
    assert train(f"resume={tmp_path / 'parts'}", "trainer.stop_after_steps=null") == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    info = json.loads((tmp_path / "parts" / "run.json").read_text(encoding="utf-8"))["info"]
    before = next(record for record in metrics(tmp_path / "parts") if record["step"] == 2)
    assert info["rows_vary"] and (info["start_step"], info["start_tokens"]) == (2, before["train/tokens"])
    saved = open_saved(tmp_path / "whole")
    template = saved_template(saved)
    assert (tmp_path / "whole" / "chat_template.jinja").read_text(encoding="utf-8") == template.source
    template.require(saved.tokenizer)
    notes = json.loads((tmp_path / "whole" / "run.json").read_text(encoding="utf-8"))["info"]["notes"]
    assert any(re.search(r"best_fit: \d+ conversations in \d+ windows .* none is cut", note) for note in notes) == bool(
        filling
    )


@pytest.mark.slow
@FILLINGS
def test_a_step_does_not_depend_on_micro_batches_and_ranks(
    filling: tuple[str, ...], chats: Path, tmp_path: Path
) -> None:
    """Loss, gradient and number of targets of four samples a step, with other numbers of targets in each part."""
    settings = (*CHAT, *filling, f"dataset.path={chats}", "trainer.max_steps=2", "trainer.grad_clip=0")
    divided: dict[str, tuple[int, tuple[str, ...]]] = {
        "whole": (1, ("trainer.batch_size=4",)),
        "two": (1, ("trainer.batch_size=2", "trainer.grad_accum_steps=2")),
        "four": (1, ("trainer.batch_size=1", "trainer.grad_accum_steps=4")),
        "ddp": (2, ("trainer.batch_size=2",)),
        "fsdp": (2, ("trainer.batch_size=1", "trainer.grad_accum_steps=2", "strategy=fsdp")),
    }
    found = {name: run(ranks, tmp_path / name, *settings, *more) for name, (ranks, more) in divided.items()}
    whole = metrics(found.pop("whole"))
    batch = run_sampler(tmp_path / "whole").batch(np.arange(4))
    per_sample = (batch.targets != IGNORE).sum(1).tolist()
    assert len(set(per_sample)) > 1 and sum(per_sample[:2]) != sum(per_sample[2:])
    assert whole[0]["train/targets"] == sum(per_sample)
    for place in found.values():
        for ours, theirs in zip(whole, metrics(place), strict=True):
            assert ours["train/targets"] == theirs["train/targets"]
            for metric in ("train/loss", "train/grad_norm", "val/loss"):
                assert (metric in ours) == (metric in theirs)
                assert ours.get(metric, 0) == pytest.approx(theirs.get(metric, 0), rel=1e-5), (place, metric)
        assert largest_difference(weights(place), weights(tmp_path / "whole")) < 1e-5


def run_sampler(place: Path) -> WindowSource:
    """The order of the training of a run."""
    cfg = OmegaConf.load(place / "config.yaml")
    assert isinstance(cfg, DictConfig)
    data = open_data(*open_corpus(cfg, allow=frozenset()))
    seq_len = cfg.trainer.seq_len or cfg.model.max_seq_len
    return make_source(data.splits("train")[""], seq_len=seq_len, seed=derive_seed(cfg.seed, "data"))


def weights(place: Path) -> dict[str, Tensor]:
    """Weights and optimizer state, which are sums of gradients."""
    return {name: value for name, value in tensors(place).items() if isinstance(value, Tensor)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, what",
    [
        (("curriculum.enabled=true",), "no curriculum of conversations"),
        (PACKED[:1], "packed conversations need a mask (dataset.packing=best_fit)"),
        (PACKED[1:], "the data are rows, each a document of its own"),
        (("dataset.packing=concat",), "dataset.packing=concat"),
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
