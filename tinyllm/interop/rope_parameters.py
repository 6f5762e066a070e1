"""Rotary positions in config.json: ``rope_parameters``; ``rope_scaling`` and ``rope_theta`` before transformers 5."""

from dataclasses import dataclass
from typing import Any

from tinyllm.interop.architecture import Architecture
from tinyllm.interop.entry_types import FLAG, OBJECT, POSITIONS, nullable, number
from tinyllm.interop.family import Config, ConfigEntry, MappedEntry, Mismatch, mapped, refused, same

POS = "model.pos"
THETA = ConfigEntry("rope_theta", number(1.0), None)
ROPE_ENTRIES = (
    ConfigEntry("rope_parameters", nullable(OBJECT), None),
    ConfigEntry("rope_scaling", nullable(OBJECT), None),
    THETA,
    ConfigEntry("original_max_position_embeddings", POSITIONS, None),
)
ORIGINAL = mapped("original_max_position_embeddings", f"{POS}.original_max_seq_len", None, type=POSITIONS)
FACTOR = mapped("factor", f"{POS}.factor", type=number(0.0, at_most=1e4))


@dataclass(frozen=True)
class RopeType:
    """A ``rope_type`` of transformers.

    Attributes:
        name: its name in config.json.
        option: the option of ``pos``.
        entries: its parameters and the configuration keys of the same meaning.
    """

    name: str
    option: str
    entries: tuple[MappedEntry, ...] = ()


def _positive(name: str, key: str, default: Any, *, null: Any = None) -> MappedEntry:
    return mapped(name, f"{POS}.{key}", default, type=nullable(number()), null=null)


TYPES = (
    RopeType("default", "rope"),
    RopeType("linear", "rope_linear", (FACTOR,)),
    RopeType("dynamic", "rope_ntk", (FACTOR,)),
    RopeType(
        "yarn",
        "rope_yarn",
        (
            FACTOR,
            ORIGINAL,
            _positive("beta_fast", "beta_fast", 32.0, null=32.0),
            _positive("beta_slow", "beta_slow", 1.0, null=1.0),
            _positive("attention_factor", "attention_factor", None),
            _positive("mscale", "mscale", None),
            _positive("mscale_all_dim", "mscale_all_dim", None),
            mapped("truncate", f"{POS}.truncate", True, type=FLAG),
        ),
    ),
    RopeType(
        "llama3",
        "rope_llama3",
        (
            FACTOR,
            ORIGINAL,
            mapped("low_freq_factor", f"{POS}.low_freq_factor", type=number()),
            mapped("high_freq_factor", f"{POS}.high_freq_factor", type=number()),
        ),
    ),
)
ROPES = tuple(rope.option for rope in TYPES)
WHOLE = (None, 1.0)
"""Supported values of ``partial_rotary_factor``: the whole head is rotated."""
NAMES = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
"""Parameters that every type has."""


def read_rope(config: Config, *, theta: float, context: int) -> dict[str, Any]:
    """The option of ``pos`` and its values by key.

    As in transformers, ``rope_scaling`` replaces ``rope_parameters`` as a whole.

    Args:
        config: the checked entries of ``ROPE_ENTRIES``.
        theta: the base if config.json has none.
        context: ``max_position_embeddings``.

    Raises:
        UserError: an unsupported type or parameter.
    """
    name = "rope_scaling" if config["rope_scaling"] else "rope_parameters"
    parameters = config[name] or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    rope = next((rope for rope in TYPES if rope.name == kind), None)
    if rope is None:
        raise refused(f"{name}.rope_type", kind, " ".join(rope.name for rope in TYPES))
    known = {entry.name for entry in rope.entries}
    for key, value in parameters.items():
        if isinstance(value, dict):
            raise refused(f"{name}.{key}", value, "a plain value, because all layers share one rope")
        if key not in known and key not in NAMES:
            raise refused(f"{name}.{key}", value, f"{', '.join((*NAMES, *sorted(known)))} with rope_type={kind}")
    if not any(same(parameters.get("partial_rotary_factor"), share) for share in WHOLE):
        raise refused(f"{name}.partial_rotary_factor", parameters["partial_rotary_factor"], "1.0")
    top_level = theta if config["rope_theta"] is None else config["rope_theta"]
    values: dict[str, Any] = {"pos": rope.option, f"{POS}.base": float(_take(THETA, parameters, name, top_level))}
    for entry in rope.entries:
        values[entry.key] = entry.decode(_take(entry, parameters, name, entry.default))
    if ORIGINAL in rope.entries:
        values[ORIGINAL.key] = config["original_max_position_embeddings"] or values[ORIGINAL.key] or context
    elif kind == "dynamic":
        values[ORIGINAL.key] = context
    if kind == "yarn" and (values[f"{POS}.mscale_all_dim"] is None or values[f"{POS}.attention_factor"] is not None):
        # transformers uses mscale only together with mscale_all_dim, and only without attention_factor
        values[f"{POS}.mscale"] = None
    _check_order(values, name)
    return values


def _take(entry: ConfigEntry, parameters: dict[str, Any], name: str, default: Any) -> Any:
    """The value of a parameter; an error names it by its path in config.json."""
    nested = ConfigEntry(f"{name}.{entry.name}", entry.type, default)
    return nested.take({f"{name}.{key}": value for key, value in parameters.items()})


def _check_order(values: dict[str, Any], name: str) -> None:
    if values.get(f"{POS}.factor", 1) < 1:
        raise refused(f"{name}.factor", values[f"{POS}.factor"], "at least 1")
    for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        below, above = values.get(f"{POS}.{low}"), values.get(f"{POS}.{high}")
        if below is not None and above is not None and below >= above:
            raise refused(f"{name}.{low}", below, f"less than {high}={above}")


def write_rope(arch: Architecture) -> dict[str, Any]:
    """The entries for config.json, for transformers 5 and for earlier versions; each ignores those of the other."""
    rope = next(rope for rope in TYPES if rope.option == arch.value("pos"))
    base = arch.value(f"{POS}.base")
    scaling = {
        entry.name: entry.encode(arch.value(entry.key)) for entry in rope.entries if arch.value(entry.key) is not None
    }
    parameters = {"rope_theta": base, "rope_type": rope.name, **scaling}
    older = {} if rope.name == "default" else {"rope_scaling": parameters}
    return {"rope_parameters": parameters, "rope_theta": base, **older}


def ntk_mismatches(arch: Architecture) -> list[Mismatch]:
    """Refuse an NTK base already scaled for a longer context: transformers rescales it by the length of each text."""
    original, context = arch.values(ORIGINAL.key), arch.value("model.max_seq_len")
    if arch.value("pos") != "rope_ntk" or original[0] >= context:
        return []
    return [Mismatch(ORIGINAL.key, original[0], (context,))]
