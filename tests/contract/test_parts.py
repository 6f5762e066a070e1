"""What every attention × feed-forward × position × norm must do, for the options found on disk."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.contract.options import PARTS, node, options, small
from tinyllm.config.build import build
from tinyllm.nn.loss import linear_cross_entropy

COMBINATIONS = [
    tuple(f"{group}={name}" for group, name in zip(PARTS, names, strict=True))
    for names in product(*(options(group) for group in PARTS))
]
ATTENTION_AND_POSITION = [(f"attn={attn}", f"pos={pos}") for attn, pos in product(options("attn"), options("pos"))]


@pytest.fixture(params=COMBINATIONS, ids=" ".join)
def combination(request: pytest.FixtureRequest) -> tuple[str, ...]:
    chosen: tuple[str, ...] = request.param
    return chosen


def test_causal(combination: tuple[str, ...]) -> None:
    """No bit of what comes before a changed token changes."""
    model = small(*combination)
    ids = torch.randint(31, (2, 12))
    before = model(ids)
    for changed in (1, 6, 11):
        other = ids.clone()
        other[:, changed] = (other[:, changed] + 1) % 31
        after = model(other)
        assert torch.equal(after[:, :changed], before[:, :changed])
        assert not torch.allclose(after[:, changed], before[:, changed])


def test_cached_decoding_equals_the_full_forward(combination: tuple[str, ...]) -> None:
    model = small(*combination)
    ids = torch.randint(31, (2, 12))
    with torch.no_grad():
        full = model(ids)
        cache = model.make_cache(2, 12)
        for prefill in range(13):
            cache.reset()
            steps = [ids[:, :prefill]] if prefill else []
            steps += [ids[:, i : i + 1] for i in range(prefill, 12)]
            cached = torch.cat([model(step, cache=cache) for step in steps], dim=1)
            assert cache.length == 12
            torch.testing.assert_close(cached, full, rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_parameter(combination: tuple[str, ...]) -> None:
    model = small(*combination)
    ids = torch.randint(31, (2, 12))
    linear_cross_entropy(model(ids).flatten(0, 1), model.head_weight, ids.flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_state_dict_round_trip(combination: tuple[str, ...]) -> None:
    one, other = small(*combination, seed=1), small(*combination, seed=2)
    ids = torch.randint(31, (1, 12))
    assert not torch.equal(one(ids), other(ids))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(ids), other(ids))
    assert set(one.state_dict()) == {name for name, _ in one.named_parameters(remove_duplicate=False)}


def test_flops_are_those_torch_counts(combination: tuple[str, ...]) -> None:
    model = small(*combination)
    counter = FlopCounterMode(display=False)
    # torch counts no operation for the fused attention kernel of the CPU, so the products it stands for run
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.logits(model(torch.randint(31, (3, 12))))
    assert counter.get_total_flops() == 3 * 12 * model.flops_per_token(12)


def test_cache_bytes_are_those_of_the_buffers(combination: tuple[str, ...]) -> None:
    model = small(*combination)
    for dtype in (torch.float32, torch.bfloat16):
        cache = model.make_cache(3, 7, dtype=dtype)
        assert cache.nbytes() == 3 * 7 * model.cache_bytes_per_token(dtype)


def test_same_seed_same_weights(combination: tuple[str, ...]) -> None:
    one, other = small(*combination, seed=3), small(*combination, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_meta_and_back_gives_the_same_tables(combination: tuple[str, ...]) -> None:
    """Built on the meta device, made real and given the weights, a model is the same model."""
    model = small(*combination)
    with torch.device("meta"):
        empty = small(*combination)
    empty.to_empty(device="cpu")
    empty.init_weights()
    empty.load_state_dict(model.state_dict())
    ids = torch.randint(31, (1, 12))
    assert torch.equal(model(ids), empty(ids))


@pytest.mark.parametrize("chosen", ATTENTION_AND_POSITION, ids=" ".join)
@pytest.mark.parametrize(
    "variant", [{"parallel_block": True}, {"bias": True}, {"tie_embeddings": False}], ids=lambda v: next(iter(v))
)
def test_variants_of_the_block(chosen: tuple[str, ...], variant: dict[str, bool]) -> None:
    model = small(*chosen, **variant)
    ids = torch.randint(31, (2, 12))
    full = model(ids)
    cache = model.make_cache(2, 12)
    cached = torch.cat([model(ids[:, :5], cache=cache), model(ids[:, 5:], cache=cache)], dim=1)
    torch.testing.assert_close(cached, full, rtol=1e-5, atol=1e-5)
    linear_cross_entropy(full.flatten(0, 1), model.head_weight, ids.flatten()).backward()
    # A bias on the keys adds the same to all scores of a query, so its gradient may be zero under pos=none.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("chosen", ATTENTION_AND_POSITION, ids=" ".join)
def test_bf16_autocast_stays_near_fp32(chosen: tuple[str, ...]) -> None:
    model = small(*chosen, init_std=0.05)
    ids = torch.randint(31, (2, 12))
    exact = model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(ids)
        cache = model.make_cache(2, 12)
        cached = torch.cat([model(ids[:, i : i + 1], cache=cache) for i in range(12)], dim=1)
    for other in (rounded, cached):
        assert (other.float() - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("chosen", ATTENTION_AND_POSITION, ids=" ".join)
def test_beyond_the_context_is_an_error(chosen: tuple[str, ...]) -> None:
    model = small(*chosen)
    with pytest.raises(ValueError, match="max_seq_len=12"):
        model(torch.zeros(1, 13, dtype=torch.int64))
    cache = model.make_cache(1, 12)
    model(torch.zeros(1, 12, dtype=torch.int64), cache=cache)
    with pytest.raises(ValueError, match="max_seq_len=12"):
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)


@pytest.mark.parametrize("chosen", [("dropout", 0.5), ("attn_dropout", 0.5)], ids=lambda c: c[0])
@pytest.mark.parametrize("attn", options("attn"))
def test_dropout_acts_in_training_alone(attn: str, chosen: tuple[str, float]) -> None:
    model = small(f"attn={attn}", **dict([chosen]))
    ids = torch.randint(31, (2, 12))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


@pytest.mark.parametrize("size", options("model"))
def test_every_size_builds_with_every_combination(size: str) -> None:
    """On the meta device, and the accounting is defined; all layers of a model are alike, so two stand for them."""
    of_size = node((f"model={size}",)) | {"vocab_size": 32000}
    with torch.device("meta"):
        build(of_size, path="model")
    for names in product(*(options(group) for group in PARTS)):
        attn, ffn, pos, norm = (node((f"{group}={name}",)) for group, name in zip(PARTS, names, strict=True))
        block = of_size["block"] | {"attn": attn["block"]["attn"], "ffn": ffn["block"]["ffn"]}
        chosen = of_size | {"n_layers": 2, "block": block, "pos": pos["pos"], "norm": norm["norm"]}
        with torch.device("meta"):
            model = build(chosen, path="model")
        counts = model.parameter_counts()
        assert counts.total == sum(p.numel() for p in model.parameters())
        assert 0 < counts.embedding < counts.total
        assert model.flops_per_token(1) > 2 * (counts.total - counts.embedding) * 0.99
        assert model.cache_bytes_per_token(torch.bfloat16) > 0


@pytest.mark.parametrize("group", PARTS)
@pytest.mark.parametrize("size", options("model"))
def test_a_size_takes_every_option(size: str, group: str) -> None:
    """What the command line names beside a size is what composes, and nothing else of the size changes."""
    for name in options(group):
        chosen, alone, part = (
            node((f"model={size}", f"{group}={name}")),
            node((f"model={size}",)),
            node((f"{group}={name}",)),
        )
        where = ("block", group) if group in ("attn", "ffn") else (group,)
        assert _at(chosen, where) == _at(part, where)
        assert {key: chosen[key] for key in chosen if key not in ("block", "pos", "norm")} == {
            key: alone[key] for key in alone if key not in ("block", "pos", "norm")
        }


def _at(content: dict[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


CLASS = """
from tinyllm.nn.attention.gqa import GQA


class Slow(GQA):
    pass
"""


def test_new_files_are_found_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One yaml and one class in a directory of the user's become an option that these tests can build."""
    shipped = options("attn")
    (tmp_path / "attn").mkdir()
    (tmp_path / "attn" / "slow.yaml").write_text(
        "# @package model.block.attn\n# GQA under another name.\n"
        "_target_: slow_attention_of_a_user.Slow\n_partial_: true\nqk_norm: true  # as in GQA\n"
        "head_dim: null  # as in GQA\nwindow: 0  # as in GQA\nsinks: 0  # as in GQA\nsoftcap: 0.0  # as in GQA\n"
    )
    (tmp_path / "slow_attention_of_a_user.py").write_text(CLASS)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert options("attn", directory=tmp_path) == ["slow"]
    model = small("attn=slow", config_dir=tmp_path)
    assert type(model.layers()[0].attn).__name__ == "Slow"
    assert options("attn") == shipped


def test_the_groups_are_those_of_the_option_table() -> None:
    assert {"mha", "mqa", "gqa"} <= set(options("attn"))
    assert {"mlp", "glu", "gelu", "swiglu"} <= set(options("ffn"))
    assert set(options("pos")) >= {"learned", "sinusoidal", "rope", "none"}
    assert set(options("norm")) >= {"layernorm", "rmsnorm"}
    assert set(options("model")) >= {"nano", "baby", "tiny", "medium", "gpt2", "large", "xlarge", "7b"}
