"""Training batches do not depend on ranks, accumulation or workers; evaluation predicts each token once."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import make_split
from tinyllm.data.batch import Batch
from tinyllm.data.loader import eval_batches, eval_bytes, eval_tokens, train_batches
from tinyllm.data.sampler import Sampler
from tinyllm.data.token_data import Split
from tinyllm.errors import UserError
from tinyllm.nn.loss import IGNORE

MANY = settings(max_examples=30, deadline=None)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return make_split(tmp_path_factory.mktemp("splits"), np.random.default_rng(0).integers(0, 1000, 3000))


def tensors(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return batch.inputs, batch.targets


def steps_of(split: Split, steps: range, batch: int, accum: int = 1, world: int = 1, **how) -> list[np.ndarray]:
    """The windows of each step over all ranks, in the order of their samples."""
    sampler = Sampler(split, seq_len=10, seed=5)
    ranks = [
        list(
            train_batches(
                sampler, start_step=steps.start, end_step=steps.stop, batch_size=batch,
                grad_accum_steps=accum, rank=rank, world_size=world, **how,
            )
        )
        for rank in range(world)
    ]  # fmt: skip
    out = []
    for step in range(len(steps)):
        micro = [tensors(ranks[r][step * accum + m]) for m in range(accum) for r in range(world)]
        out.append(np.concatenate([np.concatenate([x.numpy(), y.numpy()[:, -1:]], axis=1) for x, y in micro]))
    return out


@MANY
@given(st.sampled_from([(12, 1, 1), (6, 2, 1), (6, 1, 2), (3, 2, 2), (2, 3, 2), (1, 4, 3)]), st.integers(0, 200))
def test_global_batch_does_not_depend_on_its_division(split: Split, how: tuple[int, int, int], start: int) -> None:
    steps = range(start, start + 3)
    expected = [Sampler(split, seq_len=10, seed=5).windows(np.arange(s * 12, s * 12 + 12)) for s in steps]
    assert np.array_equal(np.stack(steps_of(split, steps, *how)), np.stack(expected))


def test_targets_are_the_next_tokens(split: Split) -> None:
    [batch] = train_batches(Sampler(split, seq_len=10, seed=5), start_step=7, end_step=8, batch_size=4)
    inputs, targets = tensors(batch)
    windows = Sampler(split, seq_len=10, seed=5).windows(np.arange(28, 32))
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous() and targets.is_contiguous()
    assert np.array_equal(inputs.numpy(), windows[:, :-1])
    assert np.array_equal(targets.numpy(), windows[:, 1:])


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(split: Split, workers: int, persistent: bool) -> None:
    """Across the ends of epochs: an epoch has 299 windows, and these steps read 3 epochs."""
    steps = range(20, 80)
    plain = steps_of(split, steps, 6, 2)
    how = {"workers": workers, "prefetch_factor": 3, "persistent_workers": persistent}
    assert np.array_equal(np.stack(steps_of(split, steps, 6, 2, **how)), np.stack(plain))


def test_resuming_in_the_middle_continues(split: Split) -> None:
    whole = steps_of(split, range(0, 60), 6, 2)
    for stop in (1, 24, 25, 59):
        assert np.array_equal(np.stack(whole[stop:]), np.stack(steps_of(split, range(stop, 60), 6, 2)))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_are_left_alone(split: Split, workers: int) -> None:
    torch.manual_seed(1)
    before = (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())
    for _ in train_batches(Sampler(split, seq_len=10, seed=5), start_step=0, end_step=5, batch_size=4, workers=workers):
        pass
    assert before == (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())


def test_workers_outlive_the_signals_that_end_training(split: Split) -> None:
    """SIGTERM and Ctrl-C reach the whole process group, but the loop still needs the batches of its step."""
    batches = train_batches(Sampler(split, seq_len=10, seed=5), start_step=0, end_step=40, batch_size=4, workers=2)
    first = [next(batches)]
    children = {int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()}
    ours = Path("/proc/self/cmdline").read_bytes()  # that a forked child has too
    workers = [pid for pid in children if Path(f"/proc/{pid}/cmdline").read_bytes() == ours]
    assert len(workers) >= 2
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGUSR1)
    assert len(first + list(batches)) == 40


@pytest.mark.slow
def test_uncaught_error_ends_the_program_with_its_workers(tmp_path: Path) -> None:
    """Workers ignore Python's SIGTERM at exit, and the traceback keeps their iterator alive."""
    code = f"""
import numpy as np
from pathlib import Path
from tests.data.conftest import make_split
from tinyllm.data.batch import Batch
from tinyllm.data.loader import train_batches
from tinyllm.data.sampler import Sampler
split = make_split(Path({str(tmp_path)!r}), np.arange(1000))
for _ in train_batches(Sampler(split, seq_len=8, seed=0), start_step=0, end_step=99, batch_size=2, workers=2):
    raise RuntimeError("in the middle")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("RuntimeError: in the middle")


def test_a_split_pickles_without_its_content(split: Split) -> None:
    import pickle

    split.read(0, 10)
    packed = pickle.dumps(split)
    assert len(packed) < 2 * split.token_bytes.nbytes + 2000
    assert np.array_equal(pickle.loads(packed).read(5, 9), split.read(5, 9))


@MANY
@given(
    length=st.integers(2, 120),
    seq_len=st.integers(1, 40),
    batch_size=st.integers(1, 5),
    max_tokens=st.none() | st.integers(1, 130),
    stride=st.none() | st.integers(1, 40),
    rows=st.none() | st.integers(2, 10),
)
def test_every_token_but_the_first_is_predicted_once(
    tmp_path_factory, length: int, seq_len: int, batch_size: int, max_tokens: int | None, stride: int | None,
    rows: int | None,
) -> None:  # fmt: skip
    if stride is not None and stride > seq_len:
        return
    if rows is not None:
        length = max(1, length // rows) * rows
    split = make_split(tmp_path_factory.getbasetemp(), np.arange(length), row_length=rows)
    predicted: list[int] = []
    context: list[int] = []
    for batch in eval_batches(split, seq_len=seq_len, batch_size=batch_size, max_tokens=max_tokens, stride=stride):
        inputs, targets = tensors(batch)
        assert inputs.shape == targets.shape
        assert inputs.shape[0] <= batch_size and inputs.shape[1] == seq_len
        here = targets != IGNORE
        assert (targets[here] == inputs[here] + 1).all()  # ids are positions, so the target is the next token
        predicted += targets[here].tolist()
        context += (inputs - inputs[:, :1])[here].tolist()
    expected = [i for i in range(length) if i % (rows or length) != 0][:max_tokens]
    assert predicted == expected
    assert eval_tokens(split, max_tokens=max_tokens) == len(expected)
    if stride is not None:  # all but the first window's predictions have a long context
        least = [min(position % (rows or length) - 1, seq_len - stride) for position in predicted]
        assert all(seen >= wanted for seen, wanted in zip(context, least, strict=True))


def test_evaluation_windows_are_adjacent(split: Split) -> None:
    inputs = torch.cat([batch.inputs for batch in eval_batches(split, seq_len=64, batch_size=7)])
    assert inputs.shape == (-(-2999 // 64), 64)
    assert inputs.flatten()[:2999].tolist() == split.read(0, 2999).tolist()


@pytest.mark.parametrize("stride", [0, -1, 11])
def test_a_stride_out_of_range_is_refused(split: Split, stride: int) -> None:
    with pytest.raises(UserError, match="stride"):
        list(eval_batches(split, seq_len=10, batch_size=2, stride=stride))


@MANY
@given(texts=st.lists(st.text("aé€😀 ", min_size=3, max_size=30), min_size=1, max_size=4), data=st.data())
def test_bytes_of_predicted_tokens(tmp_path_factory, texts: list[str], data: st.DataObject) -> None:
    """Against the text itself: an end-of-text has no bytes, an unknown character its own."""
    from tinyllm.tokenizers.char import CharTokenizer

    tokenizer = CharTokenizer(" a", eot=True, unk=True)
    folder = tmp_path_factory.getbasetemp()
    per_token = [n for text in texts for n in [*(len(c.encode()) for c in text), 0]]
    ids = np.concatenate([np.append(tokenizer.encode(text), tokenizer.eot_id) for text in texts])
    split = make_split(folder, ids)
    usual = tokenizer.token_bytes()
    odd = np.flatnonzero(usual[ids] != per_token)
    split.token_bytes, split.exceptions = usual, np.stack([odd, np.array(per_token)[odd]])
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(ids)), st.integers(0, len(ids)))))
    assert split.byte_count(start, stop) == sum(per_token[start:stop])
    limit = data.draw(st.none() | st.integers(1, 60))
    assert eval_bytes(split, max_tokens=limit) == sum(per_token[1:][:limit])


def test_numbers_have_no_bytes(tmp_path: Path) -> None:
    assert eval_bytes(make_split(tmp_path, np.arange(20), row_length=5)) is None
