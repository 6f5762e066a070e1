"""A family of models of transformers: its config.json and its weights, each as one table that is read both ways."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from tinyllm.errors import UserError, setting
from tinyllm.interop.architecture import ATTN, FFN, MOE, Architecture
from tinyllm.interop.kinds import ANY, HARMLESS, NEUTRAL, WIDTH, Kind
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
class Fact:
    """An entry of config.json that its family reads by code of its own.

    Attributes:
        theirs: its name.
        kind: what it may hold.
        default: what transformers takes when the entry is missing (its configuration class says so).
        also: other names under which it is read.
    """

    theirs: str
    kind: Kind
    default: Any = REQUIRED
    also: tuple[str, ...] = ()

    def take(self, config: Config) -> Any:
        """The value of the entry.

        Raises:
            UserError: the entry is missing, is there twice with different values, or is of another kind.
        """
        given = {name: config[name] for name in (self.theirs, *self.also) if name in config}
        if not given:
            if self.default is REQUIRED:
                raise UserError("config.json lacks an entry", key=self.theirs, value="?", hint="every model has it")
            return self.default
        (name, value), *others = given.items()
        if any(other != value for _, other in others):
            raise refused(others[0][0], others[0][1], f"{setting(name, value)}: both are one entry")
        if not self.kind.fits(value):
            raise refused(name, value, self.kind.words)
        return value


@dataclass(frozen=True, kw_only=True)
class Entry(Fact):
    """An entry of config.json and the key of ours that has the same meaning.

    Attributes:
        ours: our key.
        names: our value → their spellings, the first of which is written; None: the value itself.
        null: our value where theirs is null.
    """

    ours: str
    names: Mapping[Any, tuple[Any, ...]] | None = None
    null: Any = None

    def encode(self, value: Any) -> Any:
        """Their value of ours."""
        if self.names is None:
            return None if value == self.null else value
        return self.names[value][0]

    def decode(self, value: Any) -> Any:
        """Our value of theirs.

        Raises:
            UserError: it has no equal here.
        """
        if self.names is None:
            return self.null if value is None else value
        for ours, spellings in self.names.items():
            if value in spellings:
                return ours
        known = ", ".join(str(one) for spellings in self.names.values() for one in spellings)
        raise refused(self.theirs, value, f"one of {known}")


def entry(theirs: str, ours: str, default: Any = REQUIRED, *, kind: Kind = WIDTH, **more: Any) -> Entry:
    """An entry with our key; a size unless another kind is given."""
    return Entry(theirs, kind, default, ours=ours, **more)


AnyFact = TypeVar("AnyFact", bound=Fact)


def replaced(facts: tuple[AnyFact, ...], *others: AnyFact) -> tuple[AnyFact, ...]:
    """A family's facts or entries with others of the same names in their places, and new ones behind them."""
    by_name = {one.theirs: one for one in (*facts, *others)}
    return tuple(by_name.values())


@dataclass(frozen=True)
class Only:
    """An entry of config.json with one value that we can express, which is written and is transformers' default."""

    theirs: str
    value: Any


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
    shown = value if len(str(value)) <= 80 else f"{str(value)[:79]}…"
    return UserError("tinyllm cannot express this model", key=name, value=shown, hint=f"allowed: {allowed}")


def same(value: Any, other: Any) -> bool:
    """Whether two values of JSON are the same, where true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


class Family(ABC):
    """One ``model_type`` of transformers.

    Attributes:
        title: its name for people.
        model_type, architecture: its names in config.json.
        allowed: values that our keys may have, each a tuple; the first is what an import sets. Keys of ``entries``
            need not be here.
        entries: config.json beside our keys.
        facts: what else of config.json is read.
        only: entries of config.json that must have one value.
        neutral: further entries that may only have a value with which they change nothing, or be missing.
        harmless: entries that have no bearing on what the model computes.
        written: those of them that are written.
        varying: our keys that may differ from layer to layer, with what most layers have.

    Every entry of a config.json is in one of these tables, or the file is refused: what nobody reads may change the
    model.
    """

    title: ClassVar[str]
    model_type: ClassVar[str]
    architecture: ClassVar[str]
    allowed: ClassVar[dict[str, tuple[Any, ...]]]
    entries: ClassVar[tuple[Entry, ...]]
    facts: ClassVar[tuple[Fact, ...]] = ()
    only: ClassVar[tuple[Only, ...]] = ()
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}
    harmless: ClassVar[dict[str, Kind]] = {}
    written: ClassVar[dict[str, Any]] = {}
    varying: ClassVar[dict[str, Any]] = {}

    def mismatches(self, arch: Architecture) -> list[Mismatch]:
        """Why ``arch`` is not of this family; empty if it is."""
        found = []
        for key, allowed in self.allowed.items():
            found += [Mismatch(key, value, allowed) for value in arch.values(key) if value not in allowed]
        for one in self.entries:
            names = one.names
            if names is not None:
                values = arch.values(one.ours)
                found += [Mismatch(one.ours, value, tuple(names)) for value in values if value not in names]
        for key in {key for layer in arch.layers for key in layer}:
            values = arch.values(key)
            if len(values) > 1 and key not in self.varying and not any(one.key == key for one in found):
                found.append(Mismatch(key, values[1], (values[0],)))
        return found

    def write(self, arch: Architecture) -> dict[str, Any]:
        """config.json of an architecture without mismatches."""
        config: dict[str, Any] = {"architectures": [self.architecture], "model_type": self.model_type}
        for each in self.entries:
            values = arch.values(each.ours)
            if values:
                config[each.theirs] = each.encode(values[0])
        return config | {one.theirs: one.value for one in self.only} | self.written

    def checked(self, config: Config) -> dict[str, Any]:
        """What config.json says, defaults filled in: each entry under the name its table has.

        Raises:
            UserError: an entry is missing, is of another kind, or is one that nobody reads.
        """
        neutral = NEUTRAL | self.neutral | {one.theirs: (one.value,) for one in self.only}
        harmless = HARMLESS | dict.fromkeys(self.written, ANY) | self.harmless
        read = {name for one in (*self.entries, *self.facts) for name in (one.theirs, *one.also)}
        for name, value in config.items():
            if name in read:
                continue
            if name in neutral:
                if not any(same(value, one) for one in neutral[name]):
                    raise refused(name, value, " or ".join(setting(name, one) for one in neutral[name]))
            elif name not in harmless:
                hint = f"an entry that {self.title} has; nobody reads this one, and it may change the model"
                raise refused(name, value, hint)
            elif not harmless[name].fits(value):
                raise refused(name, value, harmless[name].words)
        return {one.theirs: one.take(config) for one in (*self.entries, *self.facts)}

    def read(self, config: Config) -> Architecture:
        """The architecture that config.json describes.

        Raises:
            UserError: an entry is missing, or means something that we cannot express.
        """
        entries = self.checked(config)
        values = {key: allowed[0] for key, allowed in self.allowed.items()} | self.varying
        values |= {one.ours: one.decode(entries[one.theirs]) for one in self.entries}
        for key, allowed in self.allowed.items():
            if values[key] not in allowed:
                name = next(one.theirs for one in self.entries if one.ours == key)
                raise refused(name, values[key], " or ".join(map(str, allowed)))
        return self.arrange(entries, values)

    def arrange(self, entries: Config, values: dict[str, Any]) -> Architecture:
        """The values by model and layer.

        Args:
            entries: config.json, checked.
            values: ours by key, as far as they are alike in all layers.
        """
        model = {key: value for key, value in values.items() if of_the_model(key)}
        block = {key: value for key, value in values.items() if not of_the_model(key)}
        return Architecture(model, [meaning(block | own) for own in self.layers(entries, values)])

    def layers(self, entries: Config, values: dict[str, Any]) -> list[dict[str, Any]]:
        """What is special of each layer."""
        return [{} for _ in range(values["model.n_layers"])]

    @abstractmethod
    def weights(self, arch: Architecture, config: Config) -> list[Weight]:
        """Every tensor of the model and where it is in theirs."""

    def ignored(self, name: str, config: Config) -> bool:
        """Whether a tensor of theirs is no weight of the model: tables that older files hold."""
        return name.endswith("rotary_emb.inv_freq")


def meaning(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer without the keys that mean nothing in it."""
    dead = f"{MOE}." if layer["moe"] == "none" else f"{FFN}.d_ff"
    return {key: value for key, value in layer.items() if not key.startswith(dead)}


def of_the_model(key: str) -> bool:
    """Whether no layer has a value of its own for a key."""
    return key in OF_THE_MODEL or key.startswith(("model.pos.", "model.norm."))


OF_THE_MODEL = frozenset(
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
"""Keys that no layer has for itself, beside those of positions and norms."""
