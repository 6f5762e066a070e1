"""LoRA: low-rank adapters of frozen linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

import re
from collections.abc import Collection
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyllm.nn.grouped_linear import GroupedLinear, multiply_groups
from tinyllm.nn.inference_linear import InferenceForm
from tinyllm.nn.linear import Linear, NeverRoundedLinear, resized_rows
from tinyllm.utils.seeds import derive_seed

MATRICES = ("lora_a", "lora_b")
"""Names of an adapter's parameters in its layer, in the order in which they are applied."""
HEAD = "head"
"""Name of an untied head, which gets an adapter only if a target names it."""
BLOCK = re.compile(r"^blocks\.\d+\.")


def merged(weight: Tensor, lora_a: Tensor, lora_b: Tensor, *, scale: float) -> Tensor:
    """W + scale · B·A: the matrix of the layer and its adapter together; also of each in a stack (E, …)."""
    return weight + scale * (lora_b @ lora_a)


class LoRALinear(Linear):
    """A frozen linear layer with an adapter: y = W·x + b + scale · B·A·dropout(x).

    A starts uniform in ±1/√d_in, which is PEFT's ``kaiming_uniform_(a=√5)``, and B at 0: the first output has the bits
    of the layer alone.

    Args:
        layer: shares its weights with this one.
        rank: rows of A and columns of B.
        scale: factor on the adapter's output.
        dropout: on the adapter's input.
        seed: of A.
    """

    def __init__(self, layer: Linear, *, rank: int, scale: float, dropout: float, seed: int) -> None:
        with torch.device("meta"):  # allocate nothing: the weights are those of the layer
            super().__init__(d_in=layer.in_features, d_out=layer.out_features, bias=layer.bias is not None)
        self.weight, self.bias = layer.weight, layer.bias
        self.std_factor, self.kind = layer.std_factor, type(layer)
        self.scale, self.dropout, self.seed = scale, dropout, seed
        device = layer.weight.device
        self.lora_a = nn.Parameter(torch.empty(rank, self.in_features, device=device))
        self.lora_b = nn.Parameter(torch.empty(self.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return y + F.linear(F.linear(dropped, self.lora_a), self.lora_b) * self.scale

    def resize_outputs(self, d_out: int) -> None:
        super().resize_outputs(d_out)
        self.lora_b = resized_rows(self.lora_b, d_out)

    def matrix(self) -> Tensor:
        return merged(self.weight, self.lora_a, self.lora_b, scale=self.scale)

    def init_weights(self, std: float) -> None:
        super().init_weights(std)
        self.init_adapter()

    def init_adapter(self) -> None:
        """Initialize the adapter alone, on the CPU."""
        init_adapter(self.lora_a, self.lora_b, seed=self.seed)

    def flops(self) -> int:
        return super().flops() + 2 * (self.lora_a.numel() + self.lora_b.numel())

    @torch.no_grad()
    def for_inference(self, form: InferenceForm) -> nn.Module:
        with torch.device("meta"):
            layer = self.kind(d_in=self.in_features, d_out=self.out_features, bias=self.bias is not None)
        layer.weight, layer.bias = nn.Parameter(self.matrix()), self.bias
        return layer.for_inference(form)


class LoRAGroupedLinear(GroupedLinear):
    """Frozen layers of experts, each with an adapter of its own; see :class:`LoRALinear`."""

    def __init__(self, layer: GroupedLinear, *, rank: int, scale: float, dropout: float, seed: int) -> None:
        n_experts, d_out, d_in = layer.weight.shape
        with torch.device("meta"):
            super().__init__(
                d_in=d_in, d_out=d_out, bias=layer.bias is not None, n_experts=n_experts, groups=layer.groups
            )
        self.weight, self.bias, self.std_factor = layer.weight, layer.bias, layer.std_factor
        self.scale, self.dropout, self.seed = scale, dropout, seed
        device = layer.weight.device
        self.lora_a = nn.Parameter(torch.empty(n_experts, rank, d_in, device=device))
        self.lora_b = nn.Parameter(torch.empty(n_experts, d_out, rank, device=device))

    def forward(self, x_NI: Tensor) -> Tensor:
        y_NO = super().forward(x_NI)
        dropped_NI = F.dropout(x_NI, self.dropout, self.training) if self.dropout else x_NI
        hidden_NR = multiply_groups(dropped_NI, self.lora_a, None, self.groups)
        return y_NO + multiply_groups(hidden_NR, self.lora_b, None, self.groups) * self.scale

    def matrices(self) -> list[Tensor]:
        return [*super().matrices(), self.lora_a, self.lora_b]

    def init_weights(self, std: float) -> None:
        super().init_weights(std)
        self.init_adapter()

    def init_adapter(self) -> None:
        """Initialize the adapters alone, on the CPU."""
        init_adapter(self.lora_a, self.lora_b, seed=self.seed)

    @torch.no_grad()
    def for_inference(self, form: InferenceForm) -> nn.Module:
        n_experts, d_out, d_in = self.weight.shape
        with torch.device("meta"):
            layer = GroupedLinear(
                d_in=d_in, d_out=d_out, bias=self.bias is not None, n_experts=n_experts, groups=self.groups
            )
        weight = merged(self.weight, self.lora_a, self.lora_b, scale=self.scale)
        layer.weight, layer.bias = nn.Parameter(weight), self.bias
        return layer.for_inference(form)

    def flops(self) -> int:
        return super().flops() + 2 * (self.lora_a[0].numel() + self.lora_b[0].numel())


@torch.no_grad()
def init_adapter(lora_a: Tensor, lora_b: Tensor, *, seed: int) -> None:
    """A uniform in ±1/√d_in, B zero.

    From a generator of its own: A does not depend on which other layers have adapters, nor on the order in which a
    strategy initializes them.
    """
    bound = lora_a.shape[-1] ** -0.5
    lora_a.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
    lora_b.zero_()


Adapted = LoRALinear | LoRAGroupedLinear


class LoRA:
    """The adapters of a model (``lora=lora``).

    Args:
        rank: of each adapter.
        alpha: the output of an adapter is multiplied with alpha / rank.
        dropout: on the inputs of the adapters.
        targets: names, or ends of names, of linear layers; ``all``: all of them except head and routers.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, *, rank: int, alpha: float, dropout: float, targets: list[str] | Literal["all"]) -> None:
        if rank < 1:
            raise ValueError(f"rank={rank} must be at least 1")
        if not alpha > 0:
            raise ValueError(f"alpha={alpha} must be positive")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be at least 0 and less than 1")
        self.rank, self.dropout, self.targets = rank, dropout, targets
        self.scale = alpha / rank

    def attach(self, model: nn.Module, *, seed: int) -> None:
        """Replace the target layers of a model by adapted ones and freeze all other parameters, in place.

        Args:
            model: its parameters are kept; adapters on ``meta`` are not initialized.
            seed: of the adapters.

        Raises:
            ValueError: a target matches no layer, or one that cannot have an adapter.
        """
        layers = self._targets_in(model)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for name, layer in layers.items():
            settings: dict[str, Any] = {"rank": self.rank, "scale": self.scale, "dropout": self.dropout}
            settings["seed"] = derive_seed(seed, f"lora {name}")
            adapted: Adapted = (
                LoRAGroupedLinear(layer, **settings)
                if isinstance(layer, GroupedLinear)
                else LoRALinear(layer, **settings)
            )
            if not adapted.lora_a.is_meta:
                adapted.init_adapter()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, adapted)

    def _targets_in(self, model: nn.Module) -> dict[str, Linear | GroupedLinear]:
        """The target layers of a model by name."""
        layers = {name: part for name, part in model.named_modules() if isinstance(part, Linear | GroupedLinear)}
        routers = [name for name, layer in layers.items() if isinstance(layer, NeverRoundedLinear)]
        usual = {name: layer for name, layer in layers.items() if name not in [HEAD, *routers]}
        if self.targets == "all":
            return usual
        chosen = {name for target in self.targets for name in self._matching(target, layers, usual)}
        if router := next((name for name in routers if name in chosen), None):
            raise ValueError(f"{self._shown()} includes {router}: a router cannot have an adapter; name other layers")
        return {name: layer for name, layer in layers.items() if name in chosen}

    def _matching(self, target: str, layers: Collection[str], usual: Collection[str]) -> list[str]:
        """The names of the layers that one target matches."""
        found = [name for name in layers if f".{name}".endswith(f".{target}")]
        if target == HEAD and not found:
            hint = "the head is tied to the token table, and an adapter would change both"
            raise ValueError(f"{self._shown()} names the tied head: {hint}; leave it out, or untie them")
        if not found:
            tails = dict.fromkeys(BLOCK.sub("", name) for name in usual)
            raise ValueError(f"{self._shown()} matches nothing with {target}: the layers are {', '.join(tails)}")
        return found

    def _shown(self) -> str:
        return f"targets=[{','.join(self.targets)}]"
