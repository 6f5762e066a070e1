"""Rotary positions in config.json: ``rope_parameters``; before transformers 5 ``rope_scaling`` and ``rope_theta``."""

from dataclasses import dataclass
from typing import Any

from tinyllm.interop.architecture import Architecture
from tinyllm.interop.family import Config, Entry, Fact, Mismatch, entry, refused, same
from tinyllm.interop.kinds import FLAG, OBJECT, POSITIONS, nullable, number

POS = "model.pos"
THETA = Fact("rope_theta", number(1.0), None)
FACTS = (
    Fact("rope_parameters", nullable(OBJECT), None),
    Fact("rope_scaling", nullable(OBJECT), None),
    THETA,
    Fact("original_max_position_embeddings", POSITIONS, None),
)
ORIGINAL = entry("original_max_position_embeddings", f"{POS}.original_max_seq_len", None, kind=POSITIONS)
FACTOR = entry("factor", f"{POS}.factor", kind=number(0.0, at_most=1e4))


@dataclass(frozen=True)
class RopeType:
    """A ``rope_type`` of transformers.

    Attributes:
        theirs: its name.
        ours: the option of ``pos``.
        entries: its parameters beside our keys.
    """

    theirs: str
    ours: str
    entries: tuple[Entry, ...] = ()


def _positive(theirs: str, ours: str, default: Any, *, null: Any = None) -> Entry:
    return entry(theirs, f"{POS}.{ours}", default, kind=nullable(number()), null=null)


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
            entry("truncate", f"{POS}.truncate", True, kind=FLAG),
        ),
    ),
    RopeType(
        "llama3",
        "rope_llama3",
        (
            FACTOR,
            ORIGINAL,
            entry("low_freq_factor", f"{POS}.low_freq_factor", kind=number()),
            entry("high_freq_factor", f"{POS}.high_freq_factor", kind=number()),
        ),
    ),
)
ROPES = tuple(one.ours for one in TYPES)
WHOLE = (None, 1.0)
"""Shares of a head that turn."""
NAMES = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
"""Parameters of every type."""


def positions(config: Config, *, theta: float, context: int) -> dict[str, Any]:
    """Our position and its keys; as in transformers ``rope_scaling`` wins over ``rope_parameters``, whole.

    Args:
        config: the entries of ``FACTS``, checked.
        theta: the base where there is none.
        context: ``max_position_embeddings``.

    Raises:
        UserError: a type or a parameter that cannot be expressed.
    """
    name = "rope_scaling" if config["rope_scaling"] else "rope_parameters"
    given = config[name] or {}
    kind = given.get("rope_type", given.get("type", "default"))
    rope = next((one for one in TYPES if one.theirs == kind), None)
    if rope is None:
        raise refused(f"{name}.rope_type", kind, " ".join(one.theirs for one in TYPES))
    known = {one.theirs for one in rope.entries}
    for key, value in given.items():
        if isinstance(value, dict):
            raise refused(f"{name}.{key}", value, "no object: one rope for all layers")
        if key not in known and key not in NAMES:
            raise refused(f"{name}.{key}", value, f"{', '.join((*NAMES, *sorted(known)))} with rope_type={kind}")
    if not any(same(given.get("partial_rotary_factor"), one) for one in WHOLE):
        raise refused(f"{name}.partial_rotary_factor", given["partial_rotary_factor"], "1.0")
    outer = theta if config["rope_theta"] is None else config["rope_theta"]
    values: dict[str, Any] = {"pos": rope.ours, f"{POS}.base": float(_taken(THETA, given, name, outer))}
    for one in rope.entries:
        values[one.ours] = one.decode(_taken(one, given, name, one.default))
    if ORIGINAL in rope.entries:
        outer = config["original_max_position_embeddings"]
        values[ORIGINAL.ours] = outer or values[ORIGINAL.ours] or context
    elif kind == "dynamic":
        values[ORIGINAL.ours] = context
    if kind == "yarn" and (values[f"{POS}.mscale_all_dim"] is None or values[f"{POS}.attention_factor"] is not None):
        values[f"{POS}.mscale"] = None  # counts together with the other one, and if the factor is not given
    _check_order(values, name)
    return values


def _taken(one: Fact, given: dict[str, Any], name: str, default: Any) -> Any:
    """A parameter, named as it stands in config.json if it is refused."""
    inner = Fact(f"{name}.{one.theirs}", one.kind, default)
    return inner.take({f"{name}.{key}": value for key, value in given.items()})


def _check_order(values: dict[str, Any], name: str) -> None:
    if values.get(f"{POS}.factor", 1) < 1:
        raise refused(f"{name}.factor", values[f"{POS}.factor"], "at least 1")
    for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        below, above = values.get(f"{POS}.{low}"), values.get(f"{POS}.{high}")
        if below is not None and above is not None and below >= above:
            raise refused(f"{name}.{low}", below, f"less than {high}={above}")


def written(arch: Architecture) -> dict[str, Any]:
    """The entries of an architecture: those of transformers 5 and of earlier versions, which ignore the others'."""
    rope = next(one for one in TYPES if one.ours == arch.value("pos"))
    base = arch.value(f"{POS}.base")
    own = {one.theirs: one.encode(arch.value(one.ours)) for one in rope.entries if arch.value(one.ours) is not None}
    parameters = {"rope_theta": base, "rope_type": rope.theirs, **own}
    older = {} if rope.theirs == "default" else {"rope_scaling": parameters}
    return {"rope_parameters": parameters, "rope_theta": base, **older}


def stretched(arch: Architecture) -> list[Mismatch]:
    """What is wrong with a base that has grown: transformers lets it follow the length of each text."""
    original, context = arch.values(ORIGINAL.ours), arch.value("model.max_seq_len")
    if arch.value("pos") != "rope_ntk" or original[0] >= context:
        return []
    return [Mismatch(ORIGINAL.ours, original[0], (context,))]
