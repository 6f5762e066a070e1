"""The arms of a probe's command line, and the keys that a probe uses. Loads no torch."""

from collections.abc import Collection, Iterable, Sequence

from tinyllm.config.cli.arguments import CommandLine
from tinyllm.config.grammar import key_of
from tinyllm.config.option_files import groups
from tinyllm.config.quoting import unquoted
from tinyllm.errors import UserError
from tinyllm.studies.compare.arms import ArmSet, ArmSpec, arm_name, expand_arms, parse_overrides
from tinyllm.utils.nested import is_within

OWN = ("tasks", "seeds", "examples", "out")
"""Keys and groups of the probe itself."""
PARTS = (
    *("attn", "ffn", "moe", "pos", "norm", "layers", "parametrization"),
    *("objective", "optimizer", "schedule", "ema"),
)
TRAINER = (
    *("max_steps", "batch_size", "grad_accum_steps", "grad_clip", "deterministic", "activation_checkpointing"),
    "nonfinite",
)
"""Keys of ``trainer`` that a probe uses besides device and precision."""
USED = (
    *("model", "seed", "debug", "hydra", *OWN, *PARTS, "trainer.precision", "trainer.device"),
    *(f"trainer.{name}" for name in TRAINER),
)
"""Keys and groups that have an effect, together with everything below them."""
SET_BY_TASK = ("model.vocab_size",)
SIZES = (
    *(f"model.{name}" for name in ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "max_seq_len")),
    *SET_BY_TASK,
)
ANY_SIZE = ("seed", "trainer.precision", "trainer.device")
"""Training settings with the same meaning for the probe's small model."""


def first_arm(line: CommandLine) -> tuple[list[str], ArmSet]:
    """The settings of the first arm, for Hydra to compose and check, and all arms."""
    arm_set = arms_of(line.settings)
    return arm_set.settings_of(arm_set.specs[0]), arm_set


def arms_of(settings: Sequence[str]) -> ArmSet:
    """The arms of a command line. Without a key that has several values there is one arm.

    Raises:
        UserError: a group has no effect, or a key may not differ between arms.
    """
    overrides = parse_overrides(settings)
    # Groups are refused before composing: an option such as dataset=text would first ask for its mandatory keys.
    check_used(str(override.input_line) for override in overrides if override.key_or_group in groups())
    for override in overrides:
        key, typed = override.key_or_group, unquoted([str(override.input_line)])[0].partition("=")[2]
        if override.is_sweep_override() and is_within(key, (*OWN, "seed")):
            hint = "give one value for all arms; seeds=<number> repeats every arm"
            raise UserError("the key cannot differ between arms", key=key, value=typed, hint=hint)
    shared, jobs = expand_arms(overrides)
    specs = tuple(ArmSpec(name=arm_name(job.swept) or "model", settings=tuple(job.swept)) for job in jobs)
    return ArmSet(shared=shared, specs=specs)


def check_used(settings: Iterable[str]) -> None:
    """Refuse keys that a probe ignores. Called once the settings compose, so that an unknown key gets its near miss.

    Raises:
        UserError: a key has no effect.
    """
    for setting in settings:
        key, value = key_of(setting), unquoted([setting])[0].partition("=")[2]
        if key == "model.document_mask":
            hint = "every sequence of a probe is one document; leave it out"
            raise UserError("the key has no effect here", key=key, value=value, hint=hint)
        if not is_within(key, USED) or is_within(key, SET_BY_TASK):
            hint = "a probe generates its own data and does not save a run; leave it out"
            raise UserError("the key has no effect here", key=key, value=value, hint=hint)


def parts_of(settings: Iterable[str], *, sizes: Collection[str] = SIZES) -> list[str]:
    """The settings of a training run that choose its parts and how it learns, without those that set its size."""
    keys = {setting: key_of(setting) for setting in settings}
    return [
        setting
        for setting, key in keys.items()
        if is_within(key, (*PARTS, *ANY_SIZE)) or (key.startswith("model.") and not is_within(key, sizes))
    ]
