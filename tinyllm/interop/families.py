"""The supported model families. An export uses the first one that fits."""

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
    known_classes = {family.architecture, family.classifier}.intersection(classes or ())
    if classes and not known_classes and not any(name.endswith("Model") for name in classes):
        raise refused("architectures", classes[0], family.architecture)
    return family


def is_reward_model(config: Config) -> bool:
    """Whether a config.json describes a classifier with one label: a reward model.

    Raises:
        UserError: it has several labels.
    """
    if family_of(config).classifier not in (config.get("architectures") or ()):
        return False
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)  # transformers' default
    if count != 1:
        raise refused("num_labels", count, "1, a reward model; tinyllm has no classifiers")
    return True


def family_for(arch: Architecture) -> Family:
    """The family that can represent an architecture.

    Raises:
        UserError: no family does; the message says what the closest family requires.
    """
    mismatches = {family: family.mismatches(arch) for family in FAMILIES}
    # A different option of a group counts twice: it changes the model more than a different value does.
    nearest = min(FAMILIES, key=lambda family: sum(1 + (mismatch.key in CHOICES) for mismatch in mismatches[family]))
    if not mismatches[nearest]:
        return nearest
    first = mismatches[nearest][0]
    *settings, last = [mismatch.allowed_settings() for mismatch in mismatches[nearest]]
    required = f"{', '.join(settings)} and {last}" if settings else last
    hint = f"{nearest.title}, the closest one, requires {required}"
    what = "no supported Hugging Face family can represent this composition"
    raise UserError(what, key=first.key, value=first.value, hint=hint)
