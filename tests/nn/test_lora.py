"""Adapters equal their formula on every kind of layer, start as nothing, and leave the frozen weights alone."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.support.options import CONTEXT, VOCABULARY, small
from tinyllm.models.transformer import Transformer
from tinyllm.nn.lora import LoRA, LoRAGroupedLinear, LoRALinear
from tinyllm.nn.loss import linear_cross_entropy

IDS = torch.randint(VOCABULARY, (2, CONTEXT), generator=torch.Generator().manual_seed(1))
ARCHITECTURES = (
    "attn=mha ffn=gelu",
    "attn=gqa ffn=swiglu moe=aux_loss model.bias=true",
    "attn=mqa ffn=gelu moe=aux_free",
    "attn=mla ffn=swiglu",
    "attn=mla model.block.attn.q_latent_dim=16 parametrization=mup",
)
EVERYDAY = (1, 4)
every = pytest.mark.parametrize(
    "settings",
    [pytest.param(one, marks=[] if i in EVERYDAY else [pytest.mark.slow]) for i, one in enumerate(ARCHITECTURES)],
)


def lora(targets: str | list[str] = "all", *, rank: int = 3, dropout: float = 0.0) -> LoRA:
    return LoRA(rank=rank, alpha=6.0, dropout=dropout, targets=targets)  # type: ignore[arg-type]


def fresh(settings: str) -> Transformer:
    return small(*settings.split(), init_std=0.1).eval()


def adapted(settings: str, *, trained: bool = True, seed: int = 0) -> tuple[Transformer, Transformer]:
    """A model, and the same with adapters; trained: with a second matrix that is not zero."""
    base, model = fresh(settings), fresh(settings)
    lora().attach(model, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if trained and name.endswith("lora_b"):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    return base, model


def merge(base: Transformer, model: Transformer) -> Transformer:
    """The base with W + 2·B·A in place of each W, computed here in float64."""
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in base.named_parameters():
            layer = name.removesuffix(".weight")
            if f"{layer}.lora_a" in tensors:
                update = tensors[f"{layer}.lora_b"].double() @ tensors[f"{layer}.lora_a"].double()
                weight.copy_(weight.double() + 2.0 * update)
    return base


def logits(model: Transformer, ids: Tensor = IDS) -> Tensor:
    return model.logits(model(ids)).detach()


def distance(one: Tensor, other: Tensor) -> float:
    error = (one - other).norm() / other.norm()
    return float(error.detach())


@every
def test_the_start_has_the_bits_of_the_base(settings: str) -> None:
    base, model = adapted(settings, trained=False)
    assert torch.equal(logits(base), logits(model))
    names = {name for name, part in model.named_modules() if isinstance(part, LoRALinear | LoRAGroupedLinear)}
    kinds = {name.partition(".")[2].partition(".")[2] for name in names}
    assert {"attn.out", "ffn.experts.down" if "moe" in settings else "ffn.down"} < kinds
    assert not any("router" in name for name in names)


@every
def test_merged_equals_unmerged(settings: str) -> None:
    """In fp64 to 1e-12, also with a cache; in fp32 to 1e-6 times the size of the logits."""
    base, model = adapted(settings)
    expected = logits(merge(base.double(), model))
    assert distance(logits(fresh(settings)), expected) > 0.01
    assert (logits(model) - expected).abs().max() < 1e-6 * expected.abs().max()
    model.double()
    assert distance(logits(model), expected) < 1e-12
    with torch.no_grad():
        cache = model.make_cache(2, CONTEXT)  # mla decodes in the latent space, with its matrix itself
        cached = torch.cat([model.logits(model(IDS[:, i : i + 1], cache=cache)) for i in range(CONTEXT)], dim=1)
    assert distance(cached, expected) < 1e-12


@every
def test_the_inference_form_is_merged(settings: str) -> None:
    base, model = adapted(settings)
    model.for_inference(torch.float32)
    assert not any(isinstance(part, LoRALinear | LoRAGroupedLinear) for part in model.modules())
    expected = logits(merge(base, adapted(settings)[1]))
    assert (logits(model) - expected).abs().max() < 1e-6 * expected.abs().max()


@every
def test_training_moves_adapters_alone(settings: str) -> None:
    """Gradients of every adapter and of nothing else, also where a block is dropped; balance moves no frozen router."""
    _, model = adapted(settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    hidden, routings = model.forward_with_routing(IDS)
    linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, IDS.flatten()).backward()
    for name, parameter in model.named_parameters():
        is_adapter = name.endswith(("lora_a", "lora_b"))
        assert parameter.requires_grad == is_adapter
        assert (parameter.grad is not None and bool(parameter.grad.any())) == is_adapter, name
    for block, routing in zip(model.layers(), routings, strict=True):
        if routing is not None:
            block.ffn.balance(routing.load_E)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.endswith(("lora_a", "lora_b")), name


@every
def test_flops_equal_torchs_count(settings: str) -> None:
    """Of the forward pass, and those that frozen matrices save in the backward pass."""
    _, model = adapted(settings)
    embedded = model.embedding(IDS).detach().requires_grad_()  # so that the first block needs a gradient of its input
    model.embedding.forward = lambda ids: embedded  # type: ignore[method-assign]
    counted, accounted = [], []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for frozen in (True, False):
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(not frozen or "lora" in name)
            with FlopCounterMode(display=False) as counter:
                loss = model.logits(model(IDS)).sum()
                forward = counter.get_total_flops()
                loss.backward()
            counted.append(counter.get_total_flops())
            accounted.append(IDS.numel() * model.training_flops_per_token(CONTEXT))
            assert forward == IDS.numel() * model.flops_per_token(CONTEXT)
    assert counted[1] - counted[0] == accounted[1] - accounted[0] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("settings", ARCHITECTURES[1:4:2])
def test_autocast_recompute_and_compilation_give_the_same_gradients(settings: str) -> None:
    _, model = adapted(settings)
    model.train()

    def gradients(dtype: torch.dtype = torch.float32) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            hidden, _ = model.forward_with_routing(IDS)
            linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, IDS.flatten()).backward()
        found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        model.zero_grad(set_to_none=True)
        return found

    exact = gradients()
    if "moe" not in settings:  # rounding may send a token to another expert
        assert distance(gradients(torch.bfloat16), exact) < 0.02
    model.recompute_every = 1
    assert torch.equal(gradients(), exact)
    model.recompute_every = 0
    torch._dynamo.reset()
    for block in model.layers():
        block.compile(backend="aot_eager")
    assert distance(gradients(), exact) < 1e-5


def test_first_matrix_depends_on_seed_and_name_alone() -> None:
    def first(targets: str | list[str], seed: int) -> Tensor:
        model = small()
        lora(targets).attach(model, seed=seed)
        return model.get_submodule("blocks.1.ffn.down").lora_a.detach()  # type: ignore[return-value]

    assert torch.equal(first("all", 1), first(["blocks.1.ffn.down"], 1))
    assert not torch.equal(first("all", 1), first("all", 2))
    assert first("all", 1).abs().max() <= 48**-0.5 and first("all", 1).std() > 0.5 * 48**-0.5


def test_dropout_is_on_the_adapters_input_in_training() -> None:
    model, base = small(), small()
    lora(dropout=0.5).attach(model, seed=0)
    model.train()
    assert torch.equal(logits(model), logits(base))  # B = 0: whatever is dropped, nothing is added
    with torch.no_grad():
        model.get_submodule("blocks.0.ffn.up").lora_b.fill_(0.1)  # type: ignore[union-attr, operator]
    assert not torch.equal(logits(model), logits(model))
    assert torch.equal(logits(model.eval()), logits(model))


def test_targets_by_end_of_name() -> None:
    def chosen(*targets: str) -> set[str]:
        model = small("model.tie_embeddings=false")
        lora(list(targets)).attach(model, seed=0)
        return {name for name, part in model.named_modules() if isinstance(part, LoRALinear)}

    assert chosen("qkv") == {"blocks.0.attn.qkv", "blocks.1.attn.qkv"}
    assert chosen("blocks.1.ffn.up", "attn.out") == {"blocks.0.attn.out", "blocks.1.attn.out", "blocks.1.ffn.up"}
    assert chosen("head") == {"head"}
    assert "head" not in {name.partition(".")[0] for name in chosen("qkv", "ffn.down")}


def test_adapter_of_an_untied_head() -> None:
    model, base = small("model.tie_embeddings=false"), small("model.tie_embeddings=false")
    lora(["head"]).attach(model, seed=0)
    with torch.no_grad():
        model.get_submodule("head").lora_b.normal_()  # type: ignore[union-attr, operator]
    assert distance(logits(model), logits(merge(base, model))) < 1e-6
    assert distance(model.head_weight, base.head_weight) < 1e-6


@pytest.mark.parametrize(
    ("settings", "targets", "message"),
    [
        ("", ["q_proj"], "matches nothing with q_proj: the layers are attn.qkv, attn.out, ffn.up, ffn.down"),
        ("", ["head"], "names the tied head"),
        ("moe=aux_free", ["router"], r"includes blocks.0.ffn.router: a router cannot have an adapter"),
    ],
)
def test_targets_without_a_layer_are_refused(settings: str, targets: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lora(targets).attach(small(*settings.split()), seed=0)
