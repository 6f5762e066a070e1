"""The loss of a split against token-by-token computation in float64."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.models import tiny_model
from tests.support.sources import ROOT
from tinyllm.data.token_data import Split
from tinyllm.errors import UserError
from tinyllm.inference.evaluation import evaluate
from tinyllm.models.transformer import Transformer

V, CONTEXT = 17, 12
BYTES = np.array([1, 2, 3, 0, *[1] * (V - 4)], dtype=np.int64)


def split_of(path: Path, n_tokens: int, **changed: object) -> Split:
    ids = np.random.default_rng(n_tokens).integers(0, V, n_tokens).astype(np.uint16)
    ids.tofile(path / "ids")
    facts = {
        "name": "val",
        "path": path / "ids",
        "dtype": "uint16",
        "n_tokens": n_tokens,
        "row_length": None,
        "fingerprint": "",
        "token_bytes": BYTES,
        "exceptions": np.zeros((2, 0), dtype=np.int64),
    }
    return Split(**(facts | changed))  # type: ignore[arg-type]


def nats(model: Transformer, context: list[int], target: int) -> float:
    """−log p(target | context), one token at a time, the softmax in float64."""
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([context])))[0, -1].double()
    return float(logits.logsumexp(0) - logits[target])


def by_hand(model: Transformer, ids: list[int], seq_len: int, stride: int) -> tuple[float, int]:
    """Sum over windows that start every ``stride`` tokens, each predicting what the one before did not."""
    total, count, start, done = 0.0, 0, 0, 0
    while done < len(ids) - 1:
        for position in range(done, min(start + seq_len, len(ids) - 1)):
            total += nats(model, ids[start : position + 1], ids[position + 1])
            count += 1
        done = min(start + seq_len, len(ids) - 1)
        start += stride
    return total, count


@pytest.mark.parametrize("n_tokens", [2, 12, 13, 14, 61, 100])  # one short window, exactly one, ragged tails
@pytest.mark.parametrize(("seq_len", "stride"), [(12, None), (5, None), (12, 4), (12, 1), (12, 12)])
def test_loss_equals_token_by_token_computation(
    tmp_path: Path, n_tokens: int, seq_len: int, stride: int | None
) -> None:
    model = tiny_model(max_seq_len=CONTEXT).eval()
    split = split_of(tmp_path, n_tokens)
    ids = split.ids.tolist()
    total, count = by_hand(model, ids, seq_len, stride or seq_len)
    assert count == n_tokens - 1
    metrics = evaluate(model, split, seq_len=seq_len, stride=stride, batch_size=3, device="cpu")
    assert metrics["val/loss"] == pytest.approx(total / count, rel=2e-6)
    assert metrics["val/ppl"] == pytest.approx(math.exp(total / count), rel=2e-5)
    n_bytes = int(BYTES[ids[1:]].sum())
    assert metrics["val/bpb"] == pytest.approx(total / (math.log(2) * n_bytes), rel=2e-6)


def test_the_batch_size_does_not_matter(tmp_path: Path) -> None:
    model, split = tiny_model(max_seq_len=CONTEXT), split_of(tmp_path, 200)
    losses = [evaluate(model, split, seq_len=12, batch_size=size, device="cpu")["val/loss"] for size in (1, 7, 64)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_max_tokens_takes_the_beginning(tmp_path: Path) -> None:
    model, split = tiny_model(max_seq_len=CONTEXT).eval(), split_of(tmp_path, 100)
    total, count = by_hand(model, split.ids[:31].tolist(), 12, 12)
    assert count == 30
    metrics = evaluate(model, split, seq_len=12, batch_size=2, max_tokens=30, device="cpu")
    assert metrics["val/loss"] == pytest.approx(total / count, rel=2e-6)


def test_no_bits_per_byte_without_bytes(tmp_path: Path) -> None:
    split = split_of(tmp_path, 50, token_bytes=None, name="train")
    metrics = evaluate(tiny_model(max_seq_len=CONTEXT), split, seq_len=12, batch_size=2, device="cpu", name="train")
    assert metrics.keys() == {"train/loss", "train/ppl"}


def test_a_model_that_knows_nothing_has_the_loss_of_a_guess(tmp_path: Path) -> None:
    model, split = tiny_model(max_seq_len=CONTEXT), split_of(tmp_path, 500)
    torch.nn.init.zeros_(model.embedding.weight)
    metrics = evaluate(model, split, seq_len=12, batch_size=8, device="cpu")
    assert metrics["val/loss"] == pytest.approx(math.log(V), rel=1e-6)
    assert metrics["val/ppl"] == pytest.approx(V, rel=1e-6)


def test_twice_gives_the_same_bits_and_training_does_not_notice(tmp_path: Path) -> None:
    model, split = tiny_model("model.dropout=0.5", max_seq_len=CONTEXT).train(), split_of(tmp_path, 200)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (evaluate(model, split, seq_len=12, batch_size=5, device="cpu") for _ in range(2))
    assert first == second
    assert all(module.training for module in model.modules())
    assert torch.get_rng_state().equal(state)
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())
    model.logits(model(torch.tensor([[1, 2]]))).sum().backward()  # nothing of inference mode is left behind


def test_the_mode_is_restored_after_an_error(tmp_path: Path) -> None:
    model = tiny_model(max_seq_len=CONTEXT).train()
    with pytest.raises(ValueError, match="max_seq_len"):
        evaluate(model, split_of(tmp_path, 50), seq_len=13, batch_size=1, device="cpu")
    assert model.training


def test_autocast_is_used_and_stays_close(tmp_path: Path) -> None:
    model, split = tiny_model(max_seq_len=CONTEXT), split_of(tmp_path, 200)
    kwargs = {"seq_len": 12, "batch_size": 5, "device": "cpu"}
    exact = evaluate(model, split, **kwargs)["val/loss"]  # type: ignore[arg-type]
    rounded = evaluate(model, split, autocast=lambda: torch.autocast("cpu", torch.bfloat16), **kwargs)["val/loss"]  # type: ignore[arg-type]
    assert exact != rounded == pytest.approx(exact, rel=0.02)


def test_the_progress_ends_at_the_last_token(tmp_path: Path) -> None:
    done: list[int] = []
    evaluate(
        tiny_model(max_seq_len=CONTEXT), split_of(tmp_path, 62), seq_len=12, batch_size=2, device="cpu",
        progress=done.append,
    )  # fmt: skip
    assert done == [24, 48, 61]


@pytest.mark.parametrize("stride", [0, 13])
def test_a_stride_that_leaves_tokens_out_is_refused(tmp_path: Path, stride: int) -> None:
    with pytest.raises(UserError, match=f"stride={stride}"):
        evaluate(
            tiny_model(max_seq_len=CONTEXT), split_of(tmp_path, 50), seq_len=12, stride=stride, batch_size=1,
            device="cpu",
        )  # fmt: skip


def test_a_split_of_one_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the val split has 1 token:"):
        evaluate(tiny_model(max_seq_len=CONTEXT), split_of(tmp_path, 1), seq_len=12, batch_size=1, device="cpu")


GROWTH = """
import resource, sys
from pathlib import Path
import torch, tinyllm
from tests.inference.test_evaluation import split_of
from tinyllm.programs.builders import build_model
from tinyllm.inference.evaluation import evaluate
from tinyllm.utils.device import keep_freed_memory

keep_freed_memory()
cpu = torch.device("cpu")
model = build_model(tinyllm.compose("model=nano"), vocab_size=2000, seed=0, device=cpu, allow=frozenset())
split = split_of(Path(sys.argv[1]), 8 * 8192)
for tokens in (2 * 8192, 8 * 8192):  # 64 MB of logits in every batch
    evaluate(model, split, seq_len=128, batch_size=64, max_tokens=tokens, device=cpu)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_memory_does_not_grow_with_the_split(tmp_path: Path) -> None:
    """Small tensors kept of every batch made it grow by one batch's logits each (glibc 2.36)."""
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    few, many = map(int, done.stdout.split())
    assert many - few < 100, f"{few} MB after 2 batches, {many} MB after 8 more"


@pytest.mark.parametrize(("seq_len", "stride"), [(12, None), (12, 4)])
def test_with_document_mask_no_token_sees_another_document(tmp_path: Path, seq_len: int, stride: int | None) -> None:
    end = 3
    model = tiny_model("model.document_mask=true", max_seq_len=CONTEXT).eval()
    split = split_of(tmp_path, 80, eot_id=end)
    ids, total, start, done = split.ids.tolist(), 0.0, 0, 0
    while done < 79:
        for position in range(done, min(start + seq_len, 79)):
            context = ids[start : position + 1]
            begin = max((i for i, token in enumerate(context) if token == end), default=0)
            total += nats(model, context[begin:], ids[position + 1])
        done, start = min(start + seq_len, 79), start + (stride or seq_len)
    metrics = evaluate(model, split, seq_len=seq_len, stride=stride, batch_size=3, device="cpu")
    assert metrics["val/loss"] == pytest.approx(total / 79, rel=2e-6)
