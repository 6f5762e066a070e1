"""Matrices stored for inference, and the kernels that multiply with them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tinyllm.nn import decode_kernels as module
from tinyllm.nn.decode_kernels import DecodeKernels
from tinyllm.nn.inference_linear import InferenceForm, InferenceLinear, quantize_rows
from tinyllm.nn.kernel_build import KernelsUnavailable

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module")
def kernels(own_token_cache: Path) -> DecodeKernels:
    try:
        return module.decode_kernels(own_token_cache / "kernels")
    except KernelsUnavailable as reason:
        pytest.skip(str(reason))


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (33, 100), (130, 771)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_equal_those_in_float64(kernels: DecodeKernels, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    for weight in (numbers(*shape).to(dtype), (numbers(*shape) * 40).round().clamp(-127, 127).to(torch.int8)):
        scale, bias = numbers(shape[0], seed=1).exp(), numbers(shape[0], seed=2)
        x = numbers(3, 2, shape[1], seed=3).to(dtype)
        exact = (x.double() @ weight.double().T) * scale + bias
        # Sums are exact up to 2⁻²⁴ of the terms' sizes per term, and a bf16 result is rounded once more. bf16 inputs of
        # int8 weights may be rounded to 2⁻¹⁶ of the largest of their row.
        terms = (x.double().abs() @ weight.double().abs().T) * scale + bias.abs()
        bound = terms * shape[1] * 2.0**-24
        if dtype == torch.bfloat16:
            bound += exact.abs() * 2.0**-8
        if weight.dtype == torch.int8 and dtype == torch.bfloat16:
            bound += x.double().abs().amax(-1, keepdim=True) * weight.double().abs().sum(1) * scale * 2.0**-16
        assert ((kernels.linear(x, weight, scale, bias).double() - exact).abs() <= bound + 1e-30).all()


def test_bits_of_a_row_depend_neither_on_the_other_rows_nor_on_threads(kernels: DecodeKernels) -> None:
    for dtype in DTYPES:
        weight, x = numbers(300, 200).to(dtype), numbers(13, 200, seed=1).to(dtype)
        together = kernels.linear(x, weight, None, None)
        for n in (1, 2, 4, 5, 7):
            assert kernels.linear(x[:n], weight, None, None).equal(together[:n])
        threads = torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            assert kernels.linear(x, weight, None, None).equal(together)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [(1, 2), (7, 4), (33, 100), (130, 772)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_with_packed_matrices(kernels: DecodeKernels, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight, bias = numbers(*shape).to(dtype), numbers(shape[0], seed=2)
    x = numbers(53, shape[1], seed=3).to(dtype)
    assert kernels.can_pack(weight)
    packed = kernels.packed(weight)
    assert kernels.unpacked(packed, n_out=shape[0]).equal(weight)
    together = kernels.linear_packed(x, packed, bias, n_out=shape[0])
    exact = x.double() @ weight.double().T + bias
    bound = (x.double().abs() @ weight.double().abs().T + bias.abs()) * shape[1] * 2.0**-24
    if dtype == torch.bfloat16:
        bound += exact.abs() * 2.0**-8
    assert ((together.double() - exact).abs() <= bound + 1e-30).all()
    for n in range(1, 26):  # every number of rows that is multiplied at a time
        assert kernels.linear_packed(x[:n], packed, bias, n_out=shape[0]).equal(together[:n])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)  # which share the largest product
    try:
        assert kernels.linear_packed(x, packed, bias, n_out=shape[0]).equal(together)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_one_query_equals_torchs_kernel(kernels: DecodeKernels, dtype: torch.dtype) -> None:
    for heads, key_heads, size, value_size in ((6, 6, 32, 32), (6, 2, 40, 24), (3, 1, 7, 5)):
        q = numbers(2, heads, size).to(dtype)
        # views of a longer cache: strides differ from those of contiguous tensors
        k = numbers(2, key_heads, 50, size, seed=1).to(dtype)[:, :, :33]
        v = numbers(2, key_heads, 50, value_size, seed=2).to(dtype)[:, :, :33]
        exact = F.scaled_dot_product_attention(
            q[:, :, None].double(), k.double(), v.double(), scale=0.3, enable_gqa=True
        )
        out = kernels.attend(q, k, v, scale=0.3)
        assert out.dtype == dtype
        torch.testing.assert_close(
            out.double(), exact[:, :, 0], atol=1e-5, rtol=1e-5 if dtype == torch.float32 else 2.0**-8
        )
        of_each = kernels.attend(q, k, v, scale=0.3, first_keys_B=torch.tensor([33, 7]))
        assert of_each[0].equal(out[0])
        assert of_each[1:].equal(kernels.attend(q[1:], k[1:, :, :7], v[1:, :, :7], scale=0.3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_that_are_not_finite_stay_visible(kernels: DecodeKernels, dtype: torch.dtype) -> None:
    x = torch.ones(2, 70, dtype=dtype)
    for value in (float("nan"), float("inf")):
        x[0, 3] = value
        for weight in (torch.ones(5, 70, dtype=dtype), torch.ones(5, 70, dtype=torch.int8)):
            y = kernels.linear(x, weight, None, None)
            assert not y[0].isfinite().any() and y[1].eq(70).all()


def test_scores_that_are_not_a_number_make_the_output_so(kernels: DecodeKernels) -> None:
    q, k = torch.full((1, 2, 8), float("nan")), numbers(1, 2, 5, 8)
    assert kernels.attend(q, k, k, scale=1.0).isnan().all()


def test_int8_rounds_each_weight_by_at_most_half_a_step_of_its_row() -> None:
    weight = numbers(40, 64) * numbers(40, 1, seed=1).exp()
    weight[3] = 0
    rounded, scale = quantize_rows(weight)
    assert rounded.dtype == torch.int8 and rounded.min() >= -127
    assert torch.equal(scale, weight.abs().amax(1) / 127)
    assert ((rounded * scale[:, None] - weight).abs() <= scale[:, None] * (0.5 + 1e-5)).all()
    assert rounded[3].eq(0).all()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_an_int8_layer_multiplies_with_its_dequantized_weight(
    kernels: DecodeKernels, rows: int, dtype: torch.dtype
) -> None:
    weight, bias, x = numbers(90, 64), numbers(90, seed=1), numbers(rows, 64, seed=2).to(dtype)
    rounded, scale = quantize_rows(weight)
    exact = x.double() @ (rounded.double() * scale.double()[:, None]).T + bias.double()
    for used in (None, kernels):
        layer = InferenceLinear(weight, bias, InferenceForm(dtype=dtype, int8=True, kernels=used))
        assert layer(x).dtype == dtype
        # weights, bias and result are rounded to the dtype of computation
        torch.testing.assert_close(layer(x).double(), exact, rtol=0, atol=float(100 * torch.finfo(dtype).eps))


def test_without_a_compiler_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPILE", ("no-such-compiler", *module.COMPILE[1:]))
    with pytest.raises(KernelsUnavailable, match="no-such-compiler was not found"):
        module.decode_kernels(tmp_path / "a")
    monkeypatch.setattr(module, "COMPILE", ("false", *module.COMPILE[1:]))
    with pytest.raises(KernelsUnavailable, match="false failed"):
        module.decode_kernels(tmp_path / "b")
    with pytest.raises(KernelsUnavailable):
        module.decode_kernels(Path("/proc/nowhere"))
    assert not list((tmp_path / "b").iterdir())


def test_kernels_are_built_once(kernels: DecodeKernels, own_token_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(subprocess, "run", refuse)
    module.decode_kernels.cache_clear()
    assert isinstance(module.decode_kernels(own_token_cache / "kernels"), DecodeKernels)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs the right to give files away")
@pytest.mark.parametrize("planted", ["owner", "mode", "link", "folder"])
def test_code_that_others_can_have_written_is_not_loaded(
    kernels: DecodeKernels, planted: str, own_token_cache: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(own_token_cache / "kernels", tmp_path / "kernels"))
    (file,) = folder.iterdir()
    if planted == "owner":
        os.chown(file, 12345, 12345)
    elif planted == "mode":
        file.chmod(0o777)
    elif planted == "link":
        file.rename(tmp_path / "elsewhere.so")
        file.symlink_to(tmp_path / "elsewhere.so")
    else:
        folder.chmod(0o777)
    with pytest.raises(KernelsUnavailable, match="others can write"):
        module.decode_kernels(folder)
