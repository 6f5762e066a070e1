"""The supported model families. An export takes the first one that fits."""

from tinyllm.errors import UserError
from tinyllm.interop.architecture import CHOICES, Architecture
from tinyllm.interop.deepseek import DeepseekV2, DeepseekV3
from tinyllm.interop.dense import GPT2, Llama, Mistral, Qwen2, Qwen3, SmolLM3
from tinyllm.interop.entry_types import HARMLESS
from tinyllm.interop.family import Config, Family, refused
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
        UserError: an unsupported ``model_type``, or ``architectures`` that contradict it.
    """
    known = {family.model_type: family for family in FAMILIES}
    kind = config.get("model_type")
    family = known.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise refused("model_type", kind, " ".join(known))
    classes, names = config.get("architectures"), HARMLESS["architectures"]
    if not names.fits(classes):
        raise refused("architectures", classes, names.words)
    if classes and family.architecture not in classes and not any(name.endswith("Model") for name in classes):
        raise refused("architectures", classes[0], family.architecture)
    return family


def family_for(arch: Architecture) -> Family:
    """The family that expresses an architecture.

    Raises:
        UserError: no family does; the message says what the nearest one would need.
    """
    mismatches = {family: family.mismatches(arch) for family in FAMILIES}
    # Another option of a group counts twice: it changes the model more than another value does.
    nearest = min(FAMILIES, key=lambda family: sum(1 + (mismatch.key in CHOICES) for mismatch in mismatches[family]))
    if not mismatches[nearest]:
        return nearest
    first, *others = mismatches[nearest]
    hint = f"{nearest.title}, the nearest family, takes {first.allowed_settings()}"
    hint += f"; and {', '.join(mismatch.allowed_settings() for mismatch in others)}" if others else ""
    raise UserError("no Hugging Face family expresses this composition", key=first.key, value=first.value, hint=hint)
