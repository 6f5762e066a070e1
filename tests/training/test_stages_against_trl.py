"""Fine-tuning, DPO, IPO and reward models equal TRL's trainers through the Hugging Face export: loss and gradients."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.interop.test_families import exported
from tests.support.against_trl import ONE_STEP, as_transformers, changed_model, imported, named_as_theirs
from tests.support.chats import record, write_records
from tests.support.training_runs import SMALL, train
from tinyllm.data.batch import PAIR, Batch
from tinyllm.data.chat.messages import parse_conversation
from tinyllm.data.chat.template import Roles
from tinyllm.data.preferences.corpus import encode_pair
from tinyllm.data.preferences.pairs import PairSplit
from tinyllm.data.preferences.records import parse_preference
from tinyllm.models.transformer import Transformer
from tinyllm.nn.loss import IGNORE
from tinyllm.programs.load_model import load, model_of, open_saved
from tinyllm.training.objectives.base import Objective
from tinyllm.training.objectives.next_token import NextToken
from tinyllm.training.objectives.pairs import LikelihoodObjective
from tinyllm.training.objectives.preference import DPO, IPO
from tinyllm.training.objectives.reward import Reward, last_targets

pytestmark = pytest.mark.exhaustive

SIZE = (*SMALL, "model.max_seq_len=256", "ffn=mlp", "norm=layernorm", "pos=learned", "model.bias=true")
"""GPT-2, whose layers transformers computes in fp64 throughout."""
QUESTIONS = ("What is 2 + 3?", "Is it raining?", "7 * 8 is what?", "Reverse abcde.")
PAIRS = [
    {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": "Yes. " * (number + 1)}],
        "rejected": [{"role": "assistant", "content": "No, " * (5 - number) + "never"}],
    }
    for number, question in enumerate(QUESTIONS)
]


@pytest.fixture(params=[torch.float32, torch.float64], ids=["fp32", "fp64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Of both models. fp64 shows that the formulas are the same, fp32 that they are as exact."""
    kind: torch.dtype = request.param
    return kind


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on conversations, a reward model from it, and their exports."""
    folder = tmp_path_factory.mktemp("run")
    chats = write_records(folder / "c.jsonl", [record(seed, tools=False) for seed in range(12)])
    tokens = ("tokenizer=byte", "tokenizer.special_tokens=standard", "trainer.max_steps=2")
    data = ("dataset=chat", f"dataset.path={chats}", "dataset.too_long=drop")
    assert train(*SIZE, *tokens, *data, f"run.dir={folder / 'chat'}") == 0
    pairs = (
        "dataset=preferences",
        f"dataset.path={write_records(folder / 'p.jsonl', PAIRS)}",
        "dataset.val_fraction=0.5",
    )
    scoring = ("objective=reward", "trainer.max_steps=3", f"init_from={folder / 'chat'}")
    assert train(*SIZE, *pairs, *scoring, f"run.dir={folder / 'reward'}") == 0
    names = ("chat", "reward")
    return SimpleNamespace(
        chats=chats,
        **{name: folder / name for name in names},
        **{f"{name}_hf": exported(folder / name, folder / f"{name}_hf") for name in names},
    )


def recorded(trainer: Any, seen: dict[str, Any]) -> Any:
    """A trainer that keeps loss and gradients of its step."""

    class Recorded(trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **more)
            names, weights = zip(*model.named_parameters(), strict=True)
            gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            seen.update(loss=loss.detach(), gradients=dict(zip(names, gradients, strict=True)))
            return loss

    return Recorded


def assert_equal(objective: Objective, batch: Batch, model: Transformer, seen: dict[str, Any]) -> None:
    """The mean loss of a batch and its gradients equal those that a trainer of TRL computed."""
    mean = objective(batch).total / objective.weight(batch)
    torch.testing.assert_close(mean.double(), seen["loss"].double(), rtol=1e-5, atol=0)
    found = torch.autograd.grad(mean, list(model.parameters()))
    named = named_as_theirs(model, dict(zip(dict(model.named_parameters()), found, strict=True)))
    compared = {name: each for name, each in seen["gradients"].items() if each is not None and name in named}
    assert len(compared) == len(named)
    for name, gradient in compared.items():
        rounding = torch.finfo(gradient.dtype).eps  # where a gradient is 0, as that of the keys' biases
        atol = 1e-5 * float(gradient.abs().max()) + rounding
        torch.testing.assert_close(named[name], gradient, rtol=1e-5, atol=atol)


def tokenizer_of(directory: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.pad_token = "<pad>"
    return tokenizer


def pair_batch(run: Path, *, reads_last: bool) -> Batch:
    """All pairs as our data set gives them."""
    tokenizer = open_saved(run).tokenizer
    rows = [encode_pair(tokenizer, parse_preference(pair), Roles()) for pair in PAIRS]
    split = PairSplit.of("train", rows, drops_long=False, first=0)
    split = PairSplit(**vars(split) | {"reads_last": reads_last})
    return split.batch(torch.arange(len(PAIRS)).numpy())


def test_fine_tuning_on_the_answers(
    dtype: torch.dtype, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trl, model, seen = imported(monkeypatch), changed_model(run.chat, seed=1, dtype=dtype), dict[str, Any]()
    conversations = [json.loads(line) for line in run.chats.read_text(encoding="utf-8").splitlines()]
    tokenizer = open_saved(run.chat).tokenizer
    rows = [Roles().render(parse_conversation(each), tokenizer) for each in conversations]
    kept = [number for number, row in enumerate(rows) if len(row.ids) <= 256][:6]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset

        arguments = {"per_device_train_batch_size": len(kept), "assistant_only_loss": True, "max_length": 257}
        recorded(trl.SFTTrainer, seen)(
            model=as_transformers(model, run.chat_hf),
            args=trl.SFTConfig(output_dir=str(tmp_path), packing=False, **arguments, **ONE_STEP),
            train_dataset=Dataset.from_list([{"messages": conversations[number]["messages"]} for number in kept]),
            processing_class=tokenizer_of(run.chat_hf),
        ).train()
    length = max(len(rows[number].ids) for number in kept) - 1
    batch = Batch(inputs=torch.zeros(len(kept), length).long(), targets=torch.full((len(kept), length), IGNORE))
    for place, number in enumerate(kept):
        ids, is_target = map(torch.from_numpy, rows[number])
        batch.inputs[place, : len(ids) - 1] = ids[:-1]
        batch.targets[place, : len(ids) - 1] = torch.where(is_target[1:], ids[1:], IGNORE)
    assert_equal(NextToken(model, label_smoothing=0.0, z_loss=0.0, chunk_tokens=0), batch, model, seen)


@pytest.mark.parametrize(
    ("loss_type", "made"),
    [
        ("sigmoid", lambda model: DPO(model, beta=0.3, label_smoothing=0.0)),
        ("ipo", lambda model: IPO(model, beta=0.3)),
    ],
    ids=["dpo", "ipo"],
)
def test_preferences(
    loss_type: str,
    made: Callable[[Transformer], LikelihoodObjective],
    dtype: torch.dtype,
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trl, model = imported(monkeypatch), changed_model(run.chat, seed=1, dtype=dtype)
    original: Transformer = load(run.chat)[0].to(dtype)
    seen: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset

        arguments = {"loss_type": [loss_type], "beta": 0.3, "max_length": 256}
        recorded(trl.DPOTrainer, seen)(
            model=as_transformers(model, run.chat_hf),
            ref_model=as_transformers(original, run.chat_hf),
            args=trl.DPOConfig(
                output_dir=str(tmp_path), per_device_train_batch_size=len(PAIRS), **arguments, **ONE_STEP
            ),
            train_dataset=Dataset.from_list(PAIRS),
            processing_class=tokenizer_of(run.chat_hf),
        ).train()
    batch, objective = pair_batch(run.chat, reads_last=False), made(model)
    with torch.no_grad():
        before = made(original).logprobs(batch)[0]
    objective.reference = torch.stack([before.chosen, before.rejected], dim=1)
    assert batch.extra[PAIR].tolist() == list(range(len(PAIRS)))
    assert_equal(objective, batch, model, seen)


def test_reward_models(dtype: torch.dtype, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the scores of the exported model equal ours, read by the class that TRL trains."""
    trl, seen = imported(monkeypatch), dict[str, Any]()
    model: Transformer = model_of(open_saved(run.reward), scores=True).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset
        from transformers import AutoModelForSequenceClassification

        theirs = AutoModelForSequenceClassification.from_pretrained(run.reward_hf, dtype=dtype)
        assert type(theirs).__name__ == "GPT2ForSequenceClassification" and theirs.config.num_labels == 1
        saved: Transformer = model_of(open_saved(run.reward), scores=True)
        ours, batch = Reward(saved.to(dtype)), pair_batch(run.reward, reads_last=True)
        last = last_targets(batch.targets) + 1
        expected = ours.model.score(ours.model(batch.inputs)[torch.arange(len(last)), last])
        padded = batch.inputs.masked_fill(
            torch.arange(batch.inputs.shape[1]) > last[:, None], theirs.config.pad_token_id
        )
        torch.testing.assert_close(theirs(padded).logits[:, 0].float(), expected.float(), rtol=1e-5, atol=1e-7)
        theirs.load_state_dict(named_as_theirs(model, model.state_dict()), strict=True)
        recorded(trl.RewardTrainer, seen)(
            model=theirs,
            args=trl.RewardConfig(output_dir=str(tmp_path), per_device_train_batch_size=len(PAIRS), **ONE_STEP),
            train_dataset=Dataset.from_list(PAIRS),
            processing_class=tokenizer_of(run.reward_hf),
        ).train()
    assert_equal(Reward(model), batch, model, seen)
