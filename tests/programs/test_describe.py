"""describe and prepare: figures against closed forms and built models, output as text and as JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import tinyllm
import tinyllm.describe
import tinyllm.prepare
from tests.support.training_runs import write_corpus
from tinyllm.programs.builders import build_model
from tinyllm.training.memory_estimate import activation_bytes


def call(program: object, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    """Run a program in this process; returns its exit code and standard output."""
    capsys.readouterr()
    argv = mock.patch.object(sys, "argv", ["tinyllm", *overrides])
    with argv, mock.patch.dict(os.environ), pytest.raises(SystemExit) as end:  # main() sets HYDRA_FULL_ERROR
        program.main()  # type: ignore[attr-defined]
    return int(end.value.code or 0), capsys.readouterr().out


def described(capsys: pytest.CaptureFixture[str], *overrides: str) -> Any:
    code, out = call(tinyllm.describe, capsys, *overrides, "--json")
    assert code == 0
    return json.loads(out)


def test_parameters_and_flops_of_large_match_the_closed_form(capsys: pytest.CaptureFixture[str]) -> None:
    d, layers, ff, vocabulary = 1600, 32, 6400, 32000
    facts = described(capsys, "model=large")
    expected = vocabulary * d + layers * (4 * d * d + 2 * d * ff + 2 * d) + d
    assert facts["parameters"]["total"] == facts["parameters"]["active per token"] == expected
    assert facts["parameters"]["embedding"] == vocabulary * d
    matrices = layers * (4 * d * d + 2 * d * ff) + vocabulary * d
    attention = layers * 2 * 4096 * d  # scores and weighted values, a product each
    assert facts["FLOPs per token"]["train"] == 3 * 2 * (matrices + attention)


@pytest.mark.slow
def test_adapters_count_in_training_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """The merged model is the base; gradients, optimizer state and average are those of the adapters."""
    settings = ("optimizer=adamw", "ema.enabled=true", "tokenizer=byte")
    base, adapted = (described(capsys, *settings, *more) for more in ((), ("lora=lora", "lora.rank=4")))
    d, layers, ff = 128, 4, 512
    extra = 4 * layers * ((d + 3 * d) + (d + d) + (d + ff) + (ff + d))
    assert adapted["parameters"] == base["parameters"] | {"of adapters": extra}
    weights, memory = base["memory"]["weights"], adapted["memory"]
    assert {name: memory[name] for name in ("weights", "gradients", "optimizer", "average")} == {
        "weights": weights + 4 * extra, "gradients": 4 * extra, "optimizer": 8 * extra, "average": 4 * extra
    }  # fmt: skip
    for kind in ("prefill", "decode"):
        assert adapted["FLOPs per token"][kind] == base["FLOPs per token"][kind]
    matrices = layers * (4 * d * d + 2 * d * ff) + base["model"]["vocabulary"] * d
    saved = base["FLOPs per token"]["train"] - adapted["FLOPs per token"]["train"]
    assert saved == 2 * matrices - 3 * 2 * extra
    code, out = call(tinyllm.describe, capsys, *settings, "vs=lora=lora ema.enabled=false")
    assert code == 0 and "of adapters" in out and "memory: average" in out


@pytest.mark.parametrize(("attn", "heads"), [("mha", 25), ("gqa", 5), ("mqa", 1)])
def test_the_cache_holds_each_key_value_head_once(attn: str, heads: int, capsys: pytest.CaptureFixture[str]) -> None:
    facts = described(capsys, "model=large", f"attn={attn}")
    per_token = 32 * 2 * heads * 64
    assert facts["KV cache, bytes"] == {
        "per token, fp32": per_token * 4,
        "per token, bf16": per_token * 2,
        "whole context, fp32": per_token * 4 * 4096,
        "whole context, bf16": per_token * 2 * 4096,
    }


@pytest.mark.slow
@pytest.mark.parametrize("attn", ["mha", "gqa", "mqa", "mla"])
def test_the_cache_figures_of_large_match_a_real_cache(attn: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured on two of the 32 equal layers, with a few tokens in the dtype of each column."""
    facts = described(capsys, "model=large", f"attn={attn}")["KV cache, bytes"]
    cfg = tinyllm.compose("model=large", f"attn={attn}", "model.n_layers=2", "model.d_ff=8", "model.vocab_size=300")
    model = build_model(cfg, vocab_size=300, seed=0, device=torch.device("cpu"), allow=frozenset()).eval()
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = model.to(dtype)
        cache = model.make_cache(1, 5)
        with torch.no_grad():
            model(torch.zeros(1, 5, dtype=torch.int64), cache=cache)
        held = sum(buffer.numel() * buffer.element_size() for layer in cache.layers for buffer in layer.buffers)
        assert all(buffer.dtype == dtype for layer in cache.layers for buffer in layer.buffers)
        assert held * 32 / 2 == 5 * facts[f"per token, {name}"] == 5 / 4096 * facts[f"whole context, {name}"]


def test_a_window_limits_cache_and_decode_flops(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = 'model.layers.kinds={far:"",near:"attn=mqa model.block.attn.window=16"}'
    facts = described(capsys, "layers=pattern", kinds, "model.layers.pattern=[near,near,near,far]")
    one_head = 2 * 32 * 4
    assert facts["model"]["layers"] == "3 × MQA (last 16) + MLP, 1 × MHA + MLP"
    assert facts["KV cache, bytes"]["per token, fp32"] == (3 * 1 + 4) * one_head
    assert facts["KV cache, bytes"]["whole context, fp32"] == 3 * 16 * one_head + 128 * 4 * one_head
    scores = 4 * 128  # 2 operations for the score and 2 for the value, per key and number of d_model
    all_far = described(
        capsys, "layers=pattern", kinds.replace("window=16", "window=0"), "model.layers.pattern=[near,near,near,far]"
    )
    less = all_far["FLOPs per token"]["decode"] - facts["FLOPs per token"]["decode"]
    assert less == 3 * scores * (128 - 16)


@pytest.mark.slow
def test_vs_shows_two_compositions_and_their_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    both = described(capsys, "model=tiny", "attn=mla", "model.block.attn.kv_latent_dim=32", "vs=attn=gqa moe=aux_free")
    second = described(capsys, "model=tiny", "attn=gqa", "moe=aux_free")
    assert {section: both["vs"][section] for section in both["vs"]} == {k: v for k, v in second.items() if k != "notes"}
    assert both["ratio"]["parameters"]["total"] == second["parameters"]["total"] / both["parameters"]["total"]
    assert "embeddings" not in both["ratio"]["model"]
    code, out = call(tinyllm.describe, capsys, "model=tiny", "vs=attn=gqa")
    assert code == 0 and "tiny vs attn=gqa" in out and "ratio" in out


@pytest.mark.parametrize(
    ("vs", "sentence"),
    [
        ("attn=gqx", "no such option (vs=attn=gqx): attn=gqx: one of"),
        ("model.n_kv_heads=1", "has no effect here (vs=model.n_kv_heads=1): model.n_kv_heads=1: not used by MHA"),
        ("model.n_heads=3", "(vs=model.n_heads=3): model.d_model=128: d_model=128 is not divisible by n_heads=3"),
        ("vs=attn=gqa", "vs cannot contain another vs (vs=vs=attn=gqa)"),
        ("attn", "not a setting (vs=attn): attn: settings are written"),
        ("a=[1", "value not understood (vs=a=[1): a=[1: the brackets do not match"),
        ("", "empty string (vs=)"),
    ],
)  # fmt: skip
@pytest.mark.every(3)
def test_an_error_in_vs_names_vs(vs: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        mock.patch.object(sys, "argv", ["tinyllm", f"vs={vs}"]),
        mock.patch.dict(os.environ),
        pytest.raises(SystemExit),
    ):
        tinyllm.describe.main()
    shown = capsys.readouterr().err
    assert sentence in shown and shown.count("\n") == 1


@pytest.mark.slow
def test_describe_does_not_import_the_compiler() -> None:
    """Importing it would double the time, which is 3 s at most for the largest model."""
    code = (
        "import sys, tinyllm.describe\n"
        "sys.argv = ['describe', 'model=xlarge', 'attn=mla', 'moe=aux_free', 'ffn=swiglu', 'trainer.device=cpu']\n"
        "try: tinyllm.describe.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch._dynamo', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_note_says_that_the_vocabulary_is_assumed_until_the_data_are_cached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("dataset=text", f"dataset.path={write_corpus(tmp_path / 'words.txt', seed=99)}")
    before = described(capsys, *data)
    assert before["model"]["vocabulary"] == 256
    assert "256 is assumed" in before["notes"][0]
    code, out = call(tinyllm.prepare, capsys, *data, "--json")
    assert code == 0
    prepared = json.loads(out)
    after = described(capsys, *data)
    assert after["model"]["vocabulary"] == prepared["vocabulary"]
    assert after["notes"] == []


def test_the_table_has_units_and_no_escape_codes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = call(tinyllm.describe, capsys, "model=xlarge", "attn=gqa", "trainer.batch_size=1")
    assert code == 0
    assert "untied" not in out and "tied" in out and "GB" in out and "\x1b" not in out


@pytest.mark.parametrize(
    "choices",
    [
        (),
        ("attn=gqa", "ffn=swiglu"),
        ("moe=aux_loss",),
        ("attn=mla", "moe=aux_free", "ffn=swiglu"),
        ("model.block.attn.window=32",),
        ("layers=pattern", 'model.layers.kinds={a:"",b:"ffn=swiglu moe=aux_free"}', "model.layers.pattern=[a,b,b]"),
    ],
    ids=" ".join,
)
def test_the_activation_estimate_is_close_to_what_autograd_saves(choices: tuple[str, ...]) -> None:
    """Measured by the bytes that autograd saves in a real forward pass on the CPU."""
    cfg = tinyllm.compose("model.d_model=64", "model.n_heads=4", "model.n_layers=3", "model.d_ff=256", *choices)
    build = {"vocab_size": 50, "seed": 0, "allow": frozenset()}
    model = build_model(cfg, device=torch.device("cpu"), **build)
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model(torch.randint(50, (4, 128)))
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    sketch = build_model(cfg, device=torch.device("meta"), **build)
    before = torch.get_rng_state()
    estimate = activation_bytes(sketch, batch_size=4, seq_len=128, device="cpu", dtype=torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert hidden.requires_grad
    assert estimate == pytest.approx(real, rel=0.15)
