"""A family of models of transformers: its config.json and its weights, each as one table that is read both ways."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tinyllm.errors import UserError, setting
from tinyllm.interop.architecture import ATTN, FFN, MOE, Architecture
from tinyllm.interop.layouts import Weight

Config = Mapping[str, Any]
"""The content of a config.json."""

REQUIRED = object()
"""The default of an entry that every config.json has."""

ACTIVATIONS = {
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh"),
    "relu": ("relu",),
    "relu2": ("relu2",),
    "silu": ("silu", "swish"),
    "mish": ("mish",),
    "leaky_relu": ("leaky_relu",),
    "sigmoid": ("sigmoid",),
    "tanh": ("tanh",),
}
"""Our names of activations, and theirs; the first is written."""
GATES = {name: ACTIVATIONS[name] for name in ("silu", "gelu", "relu", "sigmoid")}

COMMON: dict[str, tuple[Any, ...]] = {
    "model.parallel_block": (False,),
    f"{ATTN}.sinks": (0,),
    f"{ATTN}.softcap": (0,),
}
"""What no family has."""


@dataclass(frozen=True)
class Entry:
    """An entry of config.json and the key of ours that has the same meaning.

    Attributes:
        theirs: its name.
        ours: our key.
        default: what transformers takes when the entry is missing (its configuration class says so).
        names: our value → their spellings, the first of which is written; None: the value itself.
        null: our value where theirs is null.
        also: other names under which it is read.
    """

    theirs: str
    ours: str
    default: Any = REQUIRED
    names: Mapping[Any, tuple[Any, ...]] | None = None
    null: Any = None
    also: tuple[str, ...] = ()

    def encode(self, value: Any) -> Any:
        """Their value of ours."""
        if self.names is None:
            return None if value == self.null else value
        return self.names[value][0]

    def decode(self, config: Config) -> Any:
        """Our value of theirs.

        Raises:
            UserError: the entry is missing, or has no equal here.
        """
        value = next((config[name] for name in (self.theirs, *self.also) if name in config), self.default)
        if value is REQUIRED:
            raise UserError("config.json lacks an entry", key=self.theirs, value="?", hint="every model has it")
        if self.names is None:
            return self.null if value is None else value
        for ours, spellings in self.names.items():
            if value in spellings:
                return ours
        known = ", ".join(str(one) for spellings in self.names.values() for one in spellings)
        raise refused(self.theirs, value, f"one of {known}")


@dataclass(frozen=True)
class Only:
    """An entry of config.json with one value that we can express.

    Attributes:
        theirs: its name.
        value: it.
        default: what transformers takes when the entry is missing.
    """

    theirs: str
    value: Any
    default: Any = None


@dataclass(frozen=True)
class Mismatch:
    """What keeps a composition from being of a family."""

    key: str
    value: Any
    allowed: tuple[Any, ...]

    def wish(self) -> str:
        """What the family takes."""
        return " or ".join(setting(self.key, one) for one in self.allowed)


def refused(name: str, value: Any, allowed: str) -> UserError:
    """The error for an entry of config.json that cannot be expressed."""
    return UserError("tinyllm cannot express this model", key=name, value=value, hint=f"allowed: {allowed}")


class Family:
    """One ``model_type`` of transformers.

    Attributes:
        title: its name for people.
        model_type, architecture: its names in config.json.
        allowed: values that our keys may have, each a tuple; the first is what an import sets. Keys of ``entries``
            need not be here.
        entries: config.json beside our keys.
        only: entries of config.json that must have one value.
        written: entries that are written and not read, because they have no bearing on what the model computes.
        varying: our keys that may differ from layer to layer, with what most layers have.
    """

    title: ClassVar[str]
    model_type: ClassVar[str]
    architecture: ClassVar[str]
    allowed: ClassVar[dict[str, tuple[Any, ...]]]
    entries: ClassVar[tuple[Entry, ...]]
    only: ClassVar[tuple[Only, ...]] = ()
    written: ClassVar[dict[str, Any]] = {}
    varying: ClassVar[dict[str, Any]] = {}

    def mismatches(self, arch: Architecture) -> list[Mismatch]:
        """Why ``arch`` is not of this family; empty if it is."""
        found = []
        for key, allowed in self.allowed.items():
            found += [Mismatch(key, value, allowed) for value in arch.values(key) if value not in allowed]
        for entry in self.entries:
            names = entry.names
            if names is not None:
                values = arch.values(entry.ours)
                found += [Mismatch(entry.ours, value, tuple(names)) for value in values if value not in names]
        for key in {key for layer in arch.layers for key in layer}:
            values = arch.values(key)
            if len(values) > 1 and key not in self.varying and not any(one.key == key for one in found):
                found.append(Mismatch(key, values[1], (values[0],)))
        return found

    def write(self, arch: Architecture) -> dict[str, Any]:
        """config.json of an architecture without mismatches."""
        config: dict[str, Any] = {"architectures": [self.architecture], "model_type": self.model_type}
        for entry in self.entries:
            values = arch.values(entry.ours)
            if values:
                config[entry.theirs] = entry.encode(values[0])
        return config | {one.theirs: one.value for one in self.only} | self.written

    def read(self, config: Config) -> Architecture:
        """The architecture that config.json describes.

        Raises:
            UserError: an entry is missing, or means something that we cannot express.
        """
        for one in self.only:
            value = config.get(one.theirs, one.default)
            if value != one.value:
                raise refused(one.theirs, value, setting(one.theirs, one.value))
        values = {key: allowed[0] for key, allowed in self.allowed.items()} | self.varying
        values |= {entry.ours: entry.decode(config) for entry in self.entries}
        for key, allowed in self.allowed.items():
            if values[key] not in allowed:
                name = next(entry.theirs for entry in self.entries if entry.ours == key)
                raise refused(name, values[key], " or ".join(map(str, allowed)))
        return self.arrange(config, values)

    def arrange(self, config: Config, values: dict[str, Any]) -> Architecture:
        """The values by model and layer."""
        model = {key: value for key, value in values.items() if key in OF_THE_MODEL}
        block = {key: value for key, value in values.items() if key not in OF_THE_MODEL}
        layers = [meaning(block | self.differing(config, i, values)) for i in range(model["model.n_layers"])]
        return Architecture(model, layers)

    def differing(self, config: Config, layer: int, values: dict[str, Any]) -> dict[str, Any]:
        """What is special of one layer."""
        return {}

    def weights(self, arch: Architecture, config: Config) -> list[Weight]:
        """Every tensor of the model and where it is in theirs."""
        raise TypeError(f"{type(self).__name__} is no family by itself")

    def ignored(self, name: str, config: Config) -> bool:
        """Whether a tensor of theirs is no weight of the model: tables that older files hold."""
        return name.endswith("rotary_emb.inv_freq")


def meaning(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer without the keys that mean nothing in it."""
    dead = f"{MOE}." if layer["moe"] == "none" else f"{FFN}.d_ff"
    return {key: value for key, value in layer.items() if not key.startswith(dead)}


OF_THE_MODEL = frozenset(
    {
        "norm",
        "pos",
        "model.bias",
        "model.norm.eps",
        "model.pos.base",
        "model.d_model",
        "model.n_layers",
        "model.max_seq_len",
        "model.vocab_size",
        "model.tie_embeddings",
    }
)
"""Keys that no layer has for itself."""
