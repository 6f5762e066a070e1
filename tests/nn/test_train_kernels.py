"""The C++ kernels for training, against torch's operations in fp64."""

from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tinyllm
from tests.support.kernels import train_kernels_here
from tests.support.training_runs import SMALL, train, write_corpus
from tinyllm.data.batch import Batch
from tinyllm.nn.attention.block_kernel import BlockConfig, block_attention
from tinyllm.nn.kernel_build import KernelsUnavailable
from tinyllm.nn.position import Rope
from tinyllm.nn.train_kernels import AttentionConfig, TrainKernels, use_train_kernels
from tinyllm.programs.builders import build_model
from tinyllm.training.objectives.next_token import NextToken

BF16 = 2**-8
"""Largest relative error of a number that is rounded to bf16."""
CAUSAL = BlockConfig(block=64, window=0, sinks=0, softcap=0.0, scale=0.2, dropout_p=0.0)


@pytest.fixture(scope="module")
def kernels(own_token_cache: object) -> TrainKernels:
    built = train_kernels_here()
    if built is None:
        pytest.skip("the kernels cannot be built here")
    return built


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exactly(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in tensors]


@pytest.mark.parametrize("rows", [1, 700])
def test_norm(kernels: TrainKernels, rows: int) -> None:
    x, weight = numbers(rows, 96).requires_grad_(), numbers(96, seed=1).requires_grad_()
    grad = numbers(rows, 96, seed=2).bfloat16()
    y = kernels.rms_norm(x, weight, 1e-5)
    y.backward(grad)
    exact_x, exact_weight = exactly(x, weight)
    exact = F.rms_norm(exact_x, (96,), exact_weight, 1e-5)
    exact.backward(grad.double())
    torch.testing.assert_close(y.double(), exact, rtol=BF16, atol=1e-6)
    assert x.grad is not None and weight.grad is not None
    torch.testing.assert_close(x.grad.double(), exact_x.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), exact_weight.grad, rtol=1e-5, atol=1e-4)


def test_gelu(kernels: TrainKernels) -> None:
    x = torch.cat((numbers(160) * 3, torch.tensor([0.0, -0.0, 30.0, -30.0] * 4))).bfloat16().requires_grad_()
    grad = numbers(176, seed=1).bfloat16()
    y = kernels.gelu(x)
    y.backward(grad)
    (exact_x,) = exactly(x)
    exact = F.gelu(exact_x)
    exact.backward(grad.double())
    torch.testing.assert_close(y.double(), exact, rtol=BF16, atol=1e-6)
    assert x.grad is not None and exact_x.grad is not None
    torch.testing.assert_close(x.grad.double(), exact_x.grad, rtol=BF16, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("n_vocab", [65, 1001])
def test_loss(kernels: TrainKernels, n_vocab: int, scale: float) -> None:
    logits = (numbers(20, n_vocab + 30) * scale).bfloat16()
    targets = torch.arange(20) * 3
    exact_logits = logits[:, :n_vocab].double().requires_grad_()
    exact = F.cross_entropy(exact_logits, targets, reduction="none")
    exact.sum().backward()
    losses = kernels.softmax_loss_(logits, targets, n_vocab)
    # Even a target of a probability below the smallest bf16 number has its exact loss.
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[:, :n_vocab].double(), exact_logits.grad, rtol=BF16, atol=1e-6)
    assert not logits[:, n_vocab:].any()


@pytest.mark.parametrize(("rows", "n_vocab"), [(1, 65), (29, 100)])
def test_logits(kernels: TrainKernels, rows: int, n_vocab: int) -> None:
    hidden, weight = numbers(rows, 64).bfloat16(), numbers(n_vocab, 64, seed=1)
    product = kernels.head_product(weight, torch.bfloat16)
    if product is None:
        pytest.skip("this processor has no products of bf16 numbers, or has AMX")
    logits = product(hidden)
    exact = hidden.double() @ weight.bfloat16().double().T
    torch.testing.assert_close(logits[:, :n_vocab].double(), exact, rtol=BF16, atol=1e-5)
    assert not logits[:, n_vocab:].any()


@pytest.mark.parametrize(
    ("B", "T", "H", "G", "D", "rotates"),
    [(2, 128, 4, 4, 32, True), (3, 37, 4, 2, 64, False), (1, 200, 8, 8, 64, True), (2, 1, 4, 1, 96, True)],
)
def test_attention(kernels: TrainKernels, B: int, T: int, H: int, G: int, D: int, rotates: bool) -> None:
    if not kernels.has_products:
        pytest.skip("this processor has no products of bf16 numbers, or has AMX")
    heads = numbers(B, T, H + 2 * G, D).bfloat16().requires_grad_()
    grad = numbers(B, T, H, D, seed=1).bfloat16()
    rotary = Rope(max_seq_len=T, base=1e4).rotary(D)
    cos, sin = rotary.cos, rotary.sin
    tables, config = (cos, sin) if rotates else None, AttentionConfig(H, G, 0.2)
    out = kernels.attention(heads, tables, config)
    out.backward(grad)
    with torch.no_grad():
        assert torch.equal(kernels.attention(heads, tables, config), out), "an evaluation has the bits of training"

    def rotated(x_BTHD: Tensor) -> Tensor:
        x = x_BTHD.transpose(1, 2)
        return (x * cos + x.roll(D // 2, -1) * sin).to(x.dtype) if rotates else x

    def attended(heads: Tensor) -> Tensor:
        q, k, v = heads.split((H, G, G), dim=2)
        return block_attention(rotated(q), rotated(k), v.transpose(1, 2), config=CAUSAL).transpose(1, 2)

    (exact_heads,), plain_heads = exactly(heads), heads.detach().requires_grad_()
    exact, plain = attended(exact_heads), attended(plain_heads)
    exact.backward(grad.double())
    plain.backward(grad)
    assert heads.grad is not None and plain_heads.grad is not None and exact_heads.grad is not None
    for found, other, wanted in ((out, plain, exact), (heads.grad, plain_heads.grad, exact_heads.grad)):
        # Scores, probabilities and results are rounded to bf16 on the way, in torch's operations as well.
        error, error_of_torch = ((tensor.double() - wanted).norm() for tensor in (found, other))
        assert error <= 1.02 * error_of_torch <= 4 * BF16 * wanted.norm()


def test_bits_do_not_depend_on_threads(kernels: TrainKernels) -> None:
    def results() -> list[Tensor]:
        x, weight = numbers(700, 96).requires_grad_(), numbers(96, seed=1).requires_grad_()
        kernels.rms_norm(x, weight, 1e-5).backward(numbers(700, 96, seed=2).bfloat16())
        hidden = numbers(2**17).bfloat16().requires_grad_()
        kernels.gelu(hidden).sum().backward()
        logits = numbers(100, 1000).bfloat16()
        found = [x.grad, weight.grad, hidden.grad, kernels.softmax_loss_(logits, torch.arange(100), 1000), logits]
        if kernels.has_products:
            heads = numbers(2, 100, 12, 32).bfloat16().requires_grad_()
            kernels.attention(heads, None, AttentionConfig(4, 4, 0.2)).sum().backward()
            found.append(heads.grad)
        return [tensor for tensor in found if tensor is not None]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results()
        torch.set_num_threads(3)
        together = results()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_numbers_that_are_not_finite_stay_so(kernels: TrainKernels) -> None:
    x = numbers(4, 32)
    x[1, 3] = float("nan")
    assert kernels.rms_norm(x, torch.ones(32), 1e-5).isnan().any(1).tolist() == [False, True, False, False]
    logits = numbers(4, 64).bfloat16()
    logits[2, 40] = float("nan")
    losses = kernels.softmax_loss_(logits, torch.arange(4), 64)
    assert losses.isnan().tolist() == logits.isnan().all(1).tolist() == [False, False, True, False]
    assert kernels.gelu(torch.tensor([float("nan")] * 16).bfloat16()).isnan().all()
    if kernels.has_products:
        heads = numbers(8, 70, 3, 32).bfloat16()
        heads[0, 66] = float("nan")
        out = kernels.attention(heads, None, AttentionConfig(1, 1, 0.2))
        assert out[0, 66:].isnan().all() and out[1:].isfinite().all()


def test_gradients_of_a_model(kernels: TrainKernels) -> None:
    shape = ("model.d_model=128", "model.n_heads=4", "model.n_kv_heads=2", "model.n_layers=2", "model.max_seq_len=40")
    cfg = tinyllm.compose(*shape, "attn=gqa", "tokenizer=byte")
    model = build_model(cfg, vocab_size=300, seed=0, device=torch.device("cpu"), allow=frozenset())
    objective = NextToken(model)
    ids = torch.randint(300, (8, 41), generator=torch.Generator().manual_seed(0))
    batch = Batch(inputs=ids[:, :-1], targets=ids[:, 1:])

    def gradients(used: TrainKernels | None, dtype: torch.dtype) -> list[Tensor]:
        use_train_kernels(objective, used)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = objective(batch).total
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    exact = gradients(None, torch.float32)
    plain, ours = gradients(None, torch.bfloat16), gradients(kernels, torch.bfloat16)
    assert len(ours) == len(exact) and not all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))
    # As near to fp32 as torch's operations are: all of them round to bf16 in many places.
    errors, errors_of_torch = (
        [((a - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)] for found in (ours, plain)
    )
    assert all(ours <= 1.25 * of_torch + BF16 / 4 for ours, of_torch in zip(errors, errors_of_torch, strict=True))
    assert max(errors) < 8 * BF16


def test_a_run_without_a_compiler_says_so_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_corpus(tmp_path / "words.txt")
    asked = (*SMALL, "trainer.precision=bf16", "trainer.max_steps=1", "dataset=text", f"dataset.path={corpus}")
    missing = mock.patch("tinyllm.programs.decoding_kernels.train_kernels", side_effect=KernelsUnavailable("no g++"))
    with missing:
        assert train(*asked, f"run.dir={tmp_path / 'a'}") == 0
        assert "no g++" in capsys.readouterr().err
        assert train(*asked, f"run.dir={tmp_path / 'b'}", "trainer.kernels=false") == 0
        assert "no g++" not in capsys.readouterr().err
