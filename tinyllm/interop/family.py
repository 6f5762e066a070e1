"""Model families of transformers: config.json and weights as tables that serve both import and export."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from tinyllm.errors import UserError, setting
from tinyllm.interop.architecture import ATTN, FFN, MOE, Architecture
from tinyllm.interop.entry_types import ANY, HARMLESS, NEUTRAL, WIDTH, EntryType
from tinyllm.interop.layouts import Weight

Config = Mapping[str, Any]
"""The content of a config.json."""

REQUIRED = object()
"""Marks an entry without a default: every config.json has it."""

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
"""transformers' names of each activation; an export writes the first."""
GATES = {name: ACTIVATIONS[name] for name in ("silu", "gelu", "relu", "sigmoid")}

COMMON: dict[str, tuple[Any, ...]] = {
    "model.parallel_block": (False,),
    "model.short_conv": (0,),
    f"{ATTN}.sinks": (0,),
    f"{ATTN}.softcap": (0,),
}
"""Settings that no family supports, with the one value that is allowed."""


@dataclass(frozen=True)
class ConfigEntry:
    """An entry of config.json that the code of a family interprets.

    Attributes:
        name: its name in config.json.
        type: the values it may have.
        default: its value when it is missing, from transformers' configuration class.
        also: alternative names.
    """

    name: str
    type: EntryType
    default: Any = REQUIRED
    also: tuple[str, ...] = ()

    def take(self, config: Config) -> Any:
        """The value of the entry in a config.json.

        Raises:
            UserError: it is missing and has no default, has two different values, or a value of the wrong type.
        """
        given = {name: config[name] for name in (self.name, *self.also) if name in config}
        if not given:
            if self.default is REQUIRED:
                raise UserError("required entry missing from config.json", key=self.name, value="?")
            return self.default
        (name, value), *others = given.items()
        if any(other != value for _, other in others):
            allowed = f"the same value as {setting(name, value)}, because both name one entry"
            raise refused(others[0][0], others[0][1], allowed)
        if not self.type.fits(value):
            raise refused(name, value, self.type.words)
        return value


@dataclass(frozen=True, kw_only=True)
class MappedEntry(ConfigEntry):
    """An entry of config.json with a configuration key of the same meaning.

    Attributes:
        key: the configuration key.
        names: maps each configuration value to its spellings in config.json, the first of which is used when writing;
            None: the values are identical.
        null: the configuration value that null in config.json stands for.
    """

    key: str
    names: Mapping[Any, tuple[Any, ...]] | None = None
    null: Any = None

    def encode(self, value: Any) -> Any:
        """The value for config.json."""
        if self.names is None:
            return None if value == self.null else value
        return self.names[value][0]

    def decode(self, value: Any) -> Any:
        """The configuration value of a value in config.json.

        Raises:
            UserError: tinyllm has no equivalent.
        """
        if self.names is None:
            return self.null if value is None else value
        for equivalent, spellings in self.names.items():
            if value in spellings:
                return equivalent
        known = ", ".join(str(spelling) for spellings in self.names.values() for spelling in spellings)
        raise refused(self.name, value, f"one of {known}")


def mapped(name: str, key: str, default: Any = REQUIRED, *, type: EntryType = WIDTH, **more: Any) -> MappedEntry:
    """Shorthand for a :class:`MappedEntry`, whose type is ``WIDTH`` unless given."""
    return MappedEntry(name, type, default, key=key, **more)


AnyEntry = TypeVar("AnyEntry", bound=ConfigEntry)


def replaced(entries: tuple[AnyEntry, ...], *others: AnyEntry) -> tuple[AnyEntry, ...]:
    """Replace the entries of a family that ``others`` name too, and append the new ones."""
    return tuple({entry.name: entry for entry in (*entries, *others)}.values())


@dataclass(frozen=True)
class FixedEntry:
    """An entry of config.json with a single supported value, which is transformers' default and is always written."""

    name: str
    value: Any


@dataclass(frozen=True)
class Mismatch:
    """A setting that a family does not support."""

    key: str
    value: Any
    allowed: tuple[Any, ...]

    def allowed_settings(self) -> str:
        """The settings the family supports instead."""
        return " or ".join(setting(self.key, value) for value in self.allowed)


def refused(name: str, value: Any, allowed: str) -> UserError:
    """The error for an entry of config.json that tinyllm does not support."""
    return UserError("tinyllm cannot express this model", key=name, value=_shown(value), hint=f"allowed: {allowed}")


def _shown(value: Any) -> Any:
    """``value``, shortened to 80 characters for error messages."""
    return value if len(str(value)) <= 80 else f"{str(value)[:79]}…"


def same(value: Any, other: Any) -> bool:
    """Whether two JSON values are equal; unlike in Python, true does not equal 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


class Family(ABC):
    """One ``model_type`` of transformers.

    An entry of config.json that is in none of the tables below is refused: it may change what the model computes.

    Attributes:
        title: the name in messages.
        model_type, architecture: the names in config.json.
        allowed: values that configuration keys may have; an import sets the first. Keys of ``entries`` are optional
            here.
        entries: entries of config.json with an equivalent configuration key.
        interpreted: further entries, which code of the family interprets.
        fixed: entries that must have one value.
        neutral: entries that must be missing or have one of the values without effect.
        harmless: entries that do not affect what the model computes.
        written: entries an export writes without reading them.
        varying: configuration keys that may differ between layers, with their value in most layers.
    """

    title: ClassVar[str]
    model_type: ClassVar[str]
    architecture: ClassVar[str]
    allowed: ClassVar[dict[str, tuple[Any, ...]]]
    entries: ClassVar[tuple[MappedEntry, ...]]
    interpreted: ClassVar[tuple[ConfigEntry, ...]] = ()
    fixed: ClassVar[tuple[FixedEntry, ...]] = ()
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}
    harmless: ClassVar[dict[str, EntryType]] = {}
    written: ClassVar[dict[str, Any]] = {}
    varying: ClassVar[dict[str, Any]] = {}

    @property
    def classifier(self) -> str:
        """The class of transformers with a score head in place of that over the vocabulary."""
        return f"{self.architecture.removesuffix('LMHeadModel').removesuffix('ForCausalLM')}ForSequenceClassification"

    def mismatches(self, arch: Architecture) -> list[Mismatch]:
        """The settings of ``arch`` that this family does not support; empty if it fits."""
        mismatches = []
        for key, allowed in self.allowed.items():
            mismatches += [Mismatch(key, value, allowed) for value in arch.values(key) if value not in allowed]
        for entry in self.entries:
            names = entry.names
            if names is not None:
                values = arch.values(entry.key)
                mismatches += [Mismatch(entry.key, value, tuple(names)) for value in values if value not in names]
        for key in {key for layer in arch.layers for key in layer}:
            values = arch.values(key)
            if len(values) > 1 and key not in self.varying and not any(mismatch.key == key for mismatch in mismatches):
                mismatches.append(Mismatch(key, values[1], (values[0],)))
        return mismatches

    def write(self, arch: Architecture) -> dict[str, Any]:
        """The content of config.json for an architecture without mismatches."""
        config: dict[str, Any] = {"architectures": [self.architecture], "model_type": self.model_type}
        for entry in self.entries:
            if values := arch.values(entry.key):
                config[entry.name] = entry.encode(values[0])
        return config | {entry.name: entry.value for entry in self.fixed} | self.written

    def checked(self, config: Config) -> dict[str, Any]:
        """The mapped and interpreted entries of a config.json by name, with defaults filled in.

        Raises:
            UserError: an entry is missing, has a value of the wrong type, or is unknown.
        """
        neutral = NEUTRAL | self.neutral | {entry.name: (entry.value,) for entry in self.fixed}
        harmless = HARMLESS | dict.fromkeys(self.written, ANY) | self.harmless
        read = {name for entry in (*self.entries, *self.interpreted) for name in (entry.name, *entry.also)}
        for name, value in config.items():
            if name in read:
                continue
            if name in neutral:
                if not any(same(value, allowed) for allowed in neutral[name]):
                    raise refused(name, value, " or ".join(setting(name, allowed) for allowed in neutral[name]))
            elif name not in harmless:
                hint = f"tinyllm does not read it for {self.title}, and it may change the model"
                raise UserError("unknown config.json entry", key=name, value=_shown(value), hint=hint)
            elif not harmless[name].fits(value):
                raise refused(name, value, harmless[name].words)
        return {entry.name: entry.take(config) for entry in (*self.entries, *self.interpreted)}

    def read(self, config: Config) -> Architecture:
        """The architecture that a config.json describes.

        Raises:
            UserError: an entry is missing, or tinyllm cannot express what it says.
        """
        entries = self.checked(config)
        values = {key: allowed[0] for key, allowed in self.allowed.items()} | self.varying
        values |= {entry.key: entry.decode(entries[entry.name]) for entry in self.entries}
        for key, allowed in self.allowed.items():
            if values[key] not in allowed:
                name = next(entry.name for entry in self.entries if entry.key == key)
                raise refused(name, values[key], " or ".join(map(str, allowed)))
        return self.arrange(entries, values)

    def arrange(self, entries: Config, values: dict[str, Any]) -> Architecture:
        """Split values into those of the model and those of each layer. Families derive and check values here.

        Args:
            entries: the result of :meth:`checked`.
            values: values by configuration key that all layers share.
        """
        model = {key: value for key, value in values.items() if is_model_key(key)}
        block = {key: value for key, value in values.items() if not is_model_key(key)}
        return Architecture(model, [relevant(block | layer) for layer in self.layers(entries, values)])

    def layers(self, entries: Config, values: dict[str, Any]) -> list[dict[str, Any]]:
        """The values in which each layer differs from the shared ones."""
        return [{} for _ in range(values["model.n_layers"])]

    @abstractmethod
    def weights(self, arch: Architecture, config: Config) -> list[Weight]:
        """Every tensor of the model with its names and layout in transformers."""

    def ignored(self, name: str, config: Config) -> bool:
        """Whether a tensor in the files is not a weight; older files hold buffers such as rotary tables."""
        return name.endswith("rotary_emb.inv_freq")


def relevant(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer's values without keys that have no effect in it."""
    unused = f"{MOE}." if layer["moe"] == "none" else f"{FFN}.d_ff"
    return {key: value for key, value in layer.items() if not key.startswith(unused)}


def is_model_key(key: str) -> bool:
    """Whether a key belongs to the whole model and not to its layers."""
    return key in MODEL_KEYS or key.startswith(("model.pos.", "model.norm."))


MODEL_KEYS = frozenset(
    {
        "norm",
        "pos",
        "model.bias",
        "model.d_model",
        "model.n_layers",
        "model.max_seq_len",
        "model.vocab_size",
        "model.tie_embeddings",
    }
)
"""Keys of the whole model, besides those of positions and norms."""
