"""Layers written out one by one as JSON objects, translated into overrides."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tinyllm.config.grammar import quote
from tinyllm.config.suggestions import near
from tinyllm.config.targets import type_problem
from tinyllm.errors import UserError, setting
from tinyllm.utils.files import parse_json

Key = tuple[str, Any]
"""The configuration key that takes the value ("" if that depends on other keys), and the type."""

REQUIRED: dict[str, Key] = {
    "attn": ("attn", str),
    "n_head": ("model.n_heads", int),
    "moe": ("", bool),
    "up_dim": ("", int),
    "non_linearity": ("", str),
}
OF_ATTENTION: dict[str, Key] = {
    "n_kv_heads": ("model.n_kv_heads", int),
    "q_latent_dim": ("model.block.attn.q_latent_dim", int | None),
    "kv_latent_dim": ("model.block.attn.kv_latent_dim", int),
    "rope_head_dim": ("model.block.attn.rope_head_dim", int),
}
"""Required if the class of the attention has a parameter of that name."""
OF_MIXTURE: dict[str, Key] = {
    "aux_free": ("", bool),
    "n_exp": ("model.block.moe.n_experts", int),
    "n_shared": ("model.block.moe.n_shared", int),
    "n_act": ("model.block.moe.n_active", int),
}
"""Required with ``moe``."""
BALANCED: dict[bool, tuple[str, dict[str, Key]]] = {
    True: ("aux_free", {"alpha": ("model.block.moe.alpha", float), "gamma": ("model.block.moe.gamma", float)}),
    False: ("aux_loss", {"coeff": ("model.block.moe.coeff", float)}),
}
"""By the value of ``aux_free``: the mixture, and its own required keys."""
KNOWN = (*REQUIRED, *OF_ATTENTION, *OF_MIXTURE, *BALANCED[False][1], *BALANCED[True][1])
Parameters = Callable[[str], set[str]]
GATED = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu", "glu": "sigmoid"}
"""Gate of each gated unit. Any other non-linearity is the activation of a plain MLP."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One described layer."""

    name: str
    place: str
    """File and line, for error messages."""
    overrides: tuple[str, ...]


def read_layers(text: str, *, source: str, parameters: Parameters) -> list[Line]:
    """Read the layers in a string: one object per line, or one array of objects.

    Args:
        text: JSON.
        source: its file or key, for error messages.
        parameters: returns the constructor parameters of an attention option.

    Raises:
        UserError: invalid JSON, or a missing, unknown, unused or wrongly typed key, with its line.
    """
    lines = []
    for name, place, content in _objects(text, source):
        try:
            lines.append(Line(name=name, place=place, overrides=tuple(_overrides(content, parameters))))
        except UserError as error:
            raise with_place(place, error) from error
    return lines


def with_place(place: str, error: UserError) -> UserError:
    """Add a place in a file to an error."""
    if error.file is None and error.key is None:
        return UserError(error.what, file=place, hint=error.hint)
    what = str(error.file) if error.key is None else setting(error.key, error.value)
    return UserError(error.what, file=place, hint=f"{what}: {error.hint}" if error.hint else what)


def _objects(text: str, source: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, place and content of each object."""
    if not text.lstrip().startswith("["):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"line{number}", f"{source}:{number}", _parse(line, f"{source}:{number}")
        return
    _parse(text, source, of=list)
    several, decoder, position, count = "\n" in text.strip(), json.JSONDecoder(), text.index("[") + 1, 0
    while (position := _skip(text, position)) < len(text) and text[position] != "]":
        _, end = decoder.raw_decode(text, position)
        count += 1
        number = text.count("\n", 0, position) + 1
        if several:
            name, place = f"line{number}", f"{source}:{number}"
        else:  # an array on one line: number its objects
            name, place = f"object{count}", f"{source}, object {count}"
        yield name, place, _parse(text[position:end], place)
        position = end


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n,":
        position += 1
    return position


def _parse(text: str, place: str, *, of: type = dict) -> Any:
    try:
        content = parse_json(text, unique=True)
    except json.JSONDecodeError as error:
        where = f"{place}:{error.lineno}" if of is list else place
        raise UserError("not JSON", file=where, hint=f"{error.msg} at column {error.colno}") from error
    except ValueError as error:
        raise UserError("not a layer", file=place, hint=str(error)) from error
    if not isinstance(content, of):
        raise UserError("not a layer", file=place, hint=f"must be an object with the keys {', '.join(REQUIRED)}")
    return content


def _overrides(content: dict[str, Any], parameters: Parameters) -> Iterator[str]:
    """The overrides that an object translates to."""
    for key, value in content.items():
        if key not in KNOWN:
            similar = near(key, KNOWN)
            hint = f"did you mean {similar[0]}?" if similar else f"the keys are {', '.join(KNOWN)}"
            raise UserError("unknown key", key=key, value=value, hint=hint)
    _check(content, REQUIRED, because="required for every layer")
    choice = [setting(key, content[key]) for key in ("attn", "moe")]
    used = {key: target for key, target in OF_ATTENTION.items() if key in parameters(content["attn"])}
    _check(content, used, because=f"required with {choice[0]}")
    hidden, mixture = "model.block.ffn.d_ff", "none"
    if content["moe"]:
        _check(content, OF_MIXTURE, because="required with moe=true")
        hidden, (mixture, balance) = "model.block.moe.expert_d_ff", BALANCED[content["aux_free"]]
        choice.append(setting("aux_free", content["aux_free"]))
        _check(content, balance, because=f"required with {choice[-1]}")
        used |= OF_MIXTURE | balance
    for key, value in content.items():
        if key not in used and key not in REQUIRED:
            hint = f"{', '.join(choice)} does not use it; leave it out"
            raise UserError("the key has no effect here", key=key, value=value, hint=hint)
    name = content["non_linearity"]
    yield f"moe={mixture}"
    yield f"ffn={'glu' if name in GATED else 'mlp'}"
    yield f"model.block.ffn.gate={GATED[name]}" if name in GATED else f"model.block.ffn.activation={quote(name)}"
    yield f"{hidden}={content['up_dim']}"
    for key, (place, _) in (REQUIRED | used).items():
        if place:
            yield f"{place}={'null' if content[key] is None else content[key]}"


def _check(content: dict[str, Any], keys: dict[str, Key], *, because: str) -> None:
    for key, (_, kind) in keys.items():
        if key not in content:
            raise UserError("key missing", key=key, value="???", hint=because)
        allowed = type_problem(content[key], kind)
        if allowed:
            raise UserError("wrong type", key=key, value=content[key], hint=f"must be {allowed}")
