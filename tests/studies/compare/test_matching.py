"""Matching: by hand, against models that are built, and where it is impossible."""

from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.flop_counter import FlopCounterMode

import tinyllm
from tests.support.options import distinct
from tinyllm.errors import UserError
from tinyllm.models.transformer import Transformer
from tinyllm.programs.builders import build_model
from tinyllm.programs.cost import ModelCost, cost_of_node, model_cost
from tinyllm.studies.compare import matching
from tinyllm.studies.compare.matchable_sizes import SIZES as MATCHABLE
from tinyllm.studies.compare.matching import MATCHES, Solution, solve
from tinyllm.utils.nested import value_at

VOCABULARY = 65
SIZES = ("tiny", "medium")
FIGURES = ("params", "flops", "kv_bytes")
PATTERN = ("layers=pattern", "model.layers.pattern=[a,b]")
KINDS = ("attn", "ffn", "moe")
PLAIN = ("attn=mha", "ffn=gelu", "moe=none")


@cache
def composed(*choices: str) -> DictConfig:
    return tinyllm.compose(*choices)


def changed(cfg: DictConfig, values: dict[str, int]) -> DictConfig:
    changed = cfg.copy()
    for key, value in values.items():
        OmegaConf.update(changed, key, value)
    return changed


def solved(cfg: DictConfig, target: ModelCost, **settings: Any) -> Solution:
    usual: dict[str, Any] = {"match": "params", "match_by": None, "fixed": (), "tolerance": 0.01}
    return solve(cfg, target=target, vocab_size=VOCABULARY, **usual | settings)


def matched(choices: tuple[str, ...], target: ModelCost, **settings: Any) -> Solution:
    return solved(composed(*choices), target, **settings)


@cache
def costs(*choices: str) -> ModelCost:
    return model_cost(composed(*choices), vocab_size=VOCABULARY)


def arms() -> list[tuple[str, ...]]:
    """Every combination of attention, feed-forward layer and mixture in ``conf``."""
    return [
        tuple(f"{group}={name}" for group, name in zip(KINDS, names, strict=True))
        for names in product(*map(distinct, KINDS))
    ]


def built(choices: tuple[str, ...], found: Solution) -> Transformer:
    """The model of a run with the matched values, composed from the command line."""
    named = [one for one in choices if one.partition("=")[0] not in found.replaced]
    return sketch(tinyllm.compose(*named, *(f"{key}={value}" for key, value in found.values.items())))


def sketch(cfg: DictConfig) -> Transformer:
    model = build_model(cfg, vocab_size=VOCABULARY, seed=0, device=torch.device("meta"), allow=frozenset())
    assert isinstance(model, Transformer)
    return model


def parameters(model: Transformer) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def computed(model: Transformer) -> int:
    context = model.max_seq_len
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval().logits(model(torch.zeros(1, context, dtype=torch.int64, device="meta")))
    return 3 * counter.get_total_flops() // context


def cached(model: Transformer) -> int:
    cache = model.make_cache(1, 10, dtype=torch.bfloat16, device="meta")
    return sum(buffer.numel() * buffer.element_size() for layer in cache.layers for buffer in layer.buffers) // 10


MEASURES = {"params": parameters, "flops": computed, "kv_bytes": cached}
"""The figures counted on a model, not computed by an account."""


def check(size: str, choices: tuple[str, ...], target: ModelCost, match: str) -> None:
    """The model of an arm is within 1 %, or no value of the default sizes is."""
    cfg = composed(f"model={size}", *choices)
    goal = getattr(target, MATCHES[match].field)
    try:
        found = solved(cfg, target, match=match)
    except UserError as error:
        assert "cannot be matched" in str(error) and "the closest match is" in str(error)
        assert match == "kv_bytes", "a feed-forward layer can have any size"
        assert "kv_latent_dim" not in cfg.model.block.attn, "a latent can have any size"
        for heads in range(1, cfg.model.n_heads + 1):
            if cfg.model.n_heads % heads == 0:
                assert abs(cached(sketch(changed(cfg, {"model.n_kv_heads": heads}))) / goal - 1) > 0.01
        return
    figure = MEASURES[match](sketch(changed(cfg, found.values)))
    assert abs(figure / goal - 1) <= 0.01
    assert figure == getattr(found.account, MATCHES[match].field)
    assert found.mismatch == pytest.approx(figure / goal - 1)


def test_widths_agree_with_those_found_by_hand() -> None:
    """From a study made before matching was automatic."""
    target = costs("model=nano")
    assert matched(("attn=mha",), target).values == {}
    assert matched(("attn=gqa",), target).values == {"model.d_ff": 576}
    assert matched(("attn=mqa",), target).values == {"model.d_ff": 608}
    latent = matched(("attn=mla", "model.block.attn.kv_latent_dim=64"), target)
    assert latent.values == {"model.d_ff": 504}
    assert latent.mismatch == pytest.approx(0.0003, abs=5e-5)


def test_an_arm_within_the_tolerance_does_not_change() -> None:
    target = costs("model=nano")
    close = matched(("ffn=swiglu",), target)
    assert close.values == {} and close.mismatch is not None and 0 < close.mismatch < 0.01
    closer = matched(("ffn=swiglu",), target, tolerance=0.001)
    assert list(closer.values) == ["model.block.ffn.d_ff"], "no multiple of 8 is that close"
    assert abs(closer.mismatch or 0.0) <= 0.001
    assert closer.replaced == ["model.d_ff"]


def test_a_mixture_is_matched_by_its_experts() -> None:
    target = costs("model=nano")
    for match in ("params", "active_params"):
        found = matched(("moe=aux_free", "attn=mqa"), target, match=match)
        assert list(found.values) == ["model.block.moe.expert_d_ff"]
        assert found.replaced == ["model.block.ffn.d_ff", "model.d_ff"]
        assert abs(getattr(found.account, MATCHES[match].field) / getattr(target, MATCHES[match].field) - 1) <= 0.01
    choices = ("model.d_ff=480", "moe=aux_free")
    found = matched(choices, target)
    assert parameters(built(choices, found)) == found.account.parameters, "keys without effect are left out"


def test_the_cache_is_matched_by_latents_or_heads() -> None:
    target = costs("model=nano")
    assert matched(("attn=mla",), target, match="kv_bytes").values == {"model.block.attn.kv_latent_dim": 240}
    assert matched(("attn=gqa",), target, match="kv_bytes").values == {"model.n_kv_heads": 4}


def test_match_none_changes_nothing() -> None:
    found = matched(("attn=mqa",), costs("model=tiny"), match="none")
    assert found == Solution(values={}, account=costs("attn=mqa"), mismatch=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("match_by", "choices", "values"),
    [
        (["n_layers"], ("model.n_layers=9",), {"model.n_layers": 4}),
        (["d_model"], ("model.d_model=160", "model.d_ff=512"), {"model.d_model": 128, "model.d_ff": 512}),
        (["n_kv_heads"], ("attn=gqa",), {"model.n_kv_heads": 4}),
    ],
)
def test_match_by_chooses_the_sizes(match_by: list[str], choices: tuple[str, ...], values: dict[str, int]) -> None:
    found = matched(choices, costs("model=nano"), match_by=match_by, tolerance=0.05)
    assert found.values == values


@pytest.mark.slow
def test_sizes_change_together_where_none_suffices_alone() -> None:
    """With 13 layers even the narrowest feed-forward layers are too many parameters; with 12 they are not."""
    choices = ("model.n_layers=13", "attn=gqa")
    target = costs("model=nano")
    for alone in (["d_ff"], ["n_layers"]):
        with pytest.raises(UserError, match="cannot be matched"):
            matched(choices, target, match_by=alone)
    found = matched(choices, target, match_by=["d_ff", "n_layers"])
    assert found.values == {"model.n_layers": 12, "model.d_ff": 64}
    assert parameters(built(choices, found)) == found.account.parameters


@pytest.mark.slow
def test_values_that_a_module_rejects_are_skipped() -> None:
    """For example odd head sizes, which rotary positions reject."""
    rotary = matched(("model.n_layers=5",), costs("model=nano"), match_by=["d_model"], tolerance=0.06)
    assert rotary.values["model.d_model"] % 8 == 0
    free = matched(
        ("model.n_layers=5", "pos=none"), costs("model=nano", "pos=none"), match_by=["d_model"], tolerance=0.03
    )
    assert free.values["model.d_model"] % 8 == 4
    assert abs(free.mismatch or 0.0) < abs(rotary.mismatch or 0.0)


@pytest.mark.slow
def test_layers_of_several_kinds() -> None:
    target = costs("model=nano")
    follows = (*PATTERN, 'model.layers.kinds={a:"",b:"attn=mqa ffn=swiglu"}')
    found = matched(follows, target)
    assert list(found.values) == ["model.d_ff"]
    assert parameters(built(follows, found)) == found.account.parameters
    own = (*PATTERN, 'model.layers.kinds={a:"",b:"attn=mqa model.d_ff=600"}')
    found = matched(own, target)
    assert parameters(built(own, found)) == found.account.parameters
    none = (*PATTERN, 'model.layers.kinds={a:"model.d_ff=64",b:"attn=mqa model.d_ff=600"}')
    with pytest.raises(UserError, match=r"none of the sizes to change \(expert_d_ff, d_ff\) has an effect"):
        matched(none, target)
    found = matched(none, target, match_by=["n_layers"], tolerance=0.2)
    assert found.values["model.n_layers"] % 2 == 0, "the pattern's length divides it"


def test_sizes_set_by_the_arm_are_not_changed() -> None:
    target = costs("model=nano")
    for key, choices in (
        ("model.d_ff", ("model.d_ff=256",)),
        ("model.d_ff", ("model.d_ff=256", "moe=aux_free")),
    ):
        with pytest.raises(UserError, match="has an effect here or is still free to vary"):
            matched(choices, target, fixed=(key,))
    assert list(matched(("model.d_ff=256",), target, fixed=("model.n_layers",)).values) == ["model.d_ff"]


@pytest.mark.parametrize(
    ("choices", "match", "sentences"),
    [
        (("attn=mqa",), "kv_bytes", ("512 bytes of cache per token, 75.00% less than the reference's 2,048", "=none")),
        (
            ("model.n_layers=12",),
            "params",
            ("the closest match is model.d_ff=64, with", "more than the reference's", "n_layers"),
        ),
    ],
)  # fmt: skip
def test_an_impossible_match_names_the_closest_values(
    choices: tuple[str, ...], match: str, sentences: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as refused:
        matched(choices, costs("model=nano"), match=match)
    assert all(sentence in str(refused.value) for sentence in sentences)
    assert "\n" not in str(refused.value)
    assert "d_ff" not in str(refused.value).partition("match_by=")[2] or match != "kv_bytes"


@pytest.mark.slow
def test_the_suggested_sizes_do_match() -> None:
    with pytest.raises(UserError) as refused:
        matched(("attn=mqa",), costs("model=nano"), match="kv_bytes")
    names = str(refused.value).partition("match_by=[")[2].partition("]")[0].split(",")
    found = matched(("attn=mqa",), costs("model=nano"), match="kv_bytes", match_by=names)
    assert found.mismatch == 0.0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"match": "size"}, "value not allowed (match=size): one of params, active_params, flops, kv_bytes, none"),
        ({"match_by": ["d_fff"]}, "value not allowed (match_by=d_fff): one of d_ff, expert_d_ff, n_layers"),
    ],
)
def test_unknown_names_are_errors(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        matched((), costs("model=nano"), **change)
    assert sentence in str(refused.value)


def test_an_arm_that_does_not_build_is_an_error() -> None:
    with pytest.raises(UserError, match="n_heads=3"):
        matched(("model.n_heads=3",), costs("model=nano"))


def test_few_models_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpolation between the ends takes few steps."""
    built = 0

    def counted(*args: Any, **kwargs: Any) -> ModelCost:
        nonlocal built
        built += 1
        return cost_of_node(*args, **kwargs)

    monkeypatch.setattr(matching, "cost_of_node", counted)
    matched(("attn=gqa",), costs("model=nano"))
    assert built <= 7


def test_the_keys_of_all_sizes_exist() -> None:
    everything = [tinyllm.compose(*choices).model for choices in (("attn=mla", "moe=aux_free"), ())]
    keys = {key for size in MATCHABLE.values() for key in size.keys}
    nodes = [tinyllm.programs.builders.plain(node) for node in everything]
    for key in keys:
        *parents, name = key.split(".")[1:]
        assert any(name in (value_at(node, ".".join(parents)) if parents else node) for node in nodes)


@pytest.mark.parametrize("match", ["params", "kv_bytes", pytest.param("flops", marks=pytest.mark.slow)])
def test_a_complex_tiny_arm_matches_a_plain_one(match: str) -> None:
    target = costs("model=tiny", *PLAIN)
    check("tiny", ("attn=mla", "ffn=swiglu", "moe=aux_free"), target, match)


@pytest.mark.slow
def test_every_tiny_arm_matches_a_plain_one() -> None:
    target = costs("model=tiny", *PLAIN)
    for choices, match in product(arms(), FIGURES):
        check("tiny", choices, target, match)


@pytest.mark.slow
def test_medium_arms_match_a_plain_one() -> None:
    """Every fifth combination, which covers all attentions, feed-forward layers and mixtures."""
    target = costs("model=medium", *PLAIN)
    for choices, match in product(arms()[::5], FIGURES):
        check("medium", choices, target, match)


@pytest.mark.exhaustive
@pytest.mark.parametrize("reference", arms(), ids=" ".join)
@pytest.mark.parametrize("size", SIZES)
def test_every_pair_of_arms(size: str, reference: tuple[str, ...]) -> None:
    target = costs(f"model={size}", *reference)
    for choices, match in product(arms(), FIGURES):
        check(size, choices, target, match)
