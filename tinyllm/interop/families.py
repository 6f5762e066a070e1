"""The families that our compositions express. An export takes the first that fits."""

from tinyllm.errors import UserError
from tinyllm.interop.architecture import CHOICES, Architecture
from tinyllm.interop.deepseek import DeepseekV2, DeepseekV3
from tinyllm.interop.dense import GPT2, Llama, Mistral, Qwen2, Qwen3, SmolLM3
from tinyllm.interop.family import Config, Family, refused
from tinyllm.interop.kinds import HARMLESS
from tinyllm.interop.mixtures import Mixtral, Qwen3Moe

FAMILIES: tuple[Family, ...] = (
    GPT2(),
    Llama(),
    Qwen2(),
    Qwen3(),
    Mistral(),
    SmolLM3(),
    Mixtral(),
    Qwen3Moe(),
    DeepseekV2(),
    DeepseekV3(),
)


def family_of(config: Config) -> Family:
    """The family that a config.json names.

    Raises:
        UserError: it is none of ours.
    """
    known = {family.model_type: family for family in FAMILIES}
    kind = config.get("model_type")
    family = known.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise refused("model_type", kind, " ".join(known))
    classes, names = config.get("architectures"), HARMLESS["architectures"]
    if not names.fits(classes):
        raise refused("architectures", classes, names.words)
    if classes and family.architecture not in classes and not any(one.endswith("Model") for one in classes):
        raise refused("architectures", classes[0], family.architecture)
    return family


def fitting(arch: Architecture) -> Family:
    """The family of an architecture.

    Raises:
        UserError: there is none; the line says what the nearest one would take.
    """
    found = {family: family.mismatches(arch) for family in FAMILIES}
    # another group's option is a longer way than another value
    nearest = min(found, key=lambda family: sum(1 + (one.key in CHOICES) for one in found[family]))
    if not found[nearest]:
        return nearest
    first, *others = found[nearest]
    hint = f"{nearest.title}, the nearest, takes {first.wish()}"
    hint += f"; and {', '.join(one.wish() for one in others)}" if others else ""
    raise UserError("no Hugging Face family expresses this composition", key=first.key, value=first.value, hint=hint)
