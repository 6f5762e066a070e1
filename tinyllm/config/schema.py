"""Types and ranges of the keys in the root files of ``conf/``.

The default of each key is in its yaml file. The keys of options are not here: their schema is the constructor that
``_target_`` names.
"""

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from tinyllm.config.schema_inference import (
    ChatConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    ImportConfig,
    PairsConfig,
    ServeConfig,
)
from tinyllm.config.schema_key import (
    DEVICES,
    MOST_MICRO_STEPS,
    MOST_SEQUENCES,
    MOST_STEPS,
    MOST_TOKENS,
    PRECISIONS,
    SWITCH,
    key,
)


@dataclass
class RunConfig:
    name: str | None = key(nonempty=True)
    dir: str | None = key(nonempty=True)


@dataclass
class NonfiniteConfig:
    action: str = key(choices=("skip", "stop"))
    patience: int = key(at_least=1)


@dataclass
class CompileConfig:
    enabled: bool = key()
    backend: str = key(nonempty=True)
    mode: str = key(choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"))
    fullgraph: bool = key()
    dynamic: bool | None = key()
    fallback: bool = key()


@dataclass
class ProfileConfig:
    steps: int = key(at_least=0)
    memory: bool = key()


@dataclass
class SampleConfig:
    temperature: float = key(at_least=0)
    top_k: int | None = key(at_least=1)
    top_p: float | None = key(above=0)
    min_p: float | None = key(at_least=0)
    repetition_penalty: float = key(above=0)


@dataclass
class TrainerConfig:
    max_steps: int | None = key(at_least=1, at_most=MOST_STEPS)
    max_tokens: int | None = key(at_least=1, at_most=MOST_TOKENS)
    max_epochs: float | None = key(above=0, at_most=10**6)
    max_minutes: float | None = key(above=0)
    stop_after_steps: int | None = key(at_least=1, at_most=MOST_STEPS)
    batch_size: int = key(at_least=1, at_most=MOST_SEQUENCES)
    grad_accum_steps: int | None = key(at_least=1, at_most=MOST_MICRO_STEPS)
    total_batch_tokens: Any = key(whole=True)
    seq_len: int | None = key(at_least=1)
    grad_clip: float = key(at_least=0)
    precision: str = key(choices=PRECISIONS)
    device: str = key(choices=DEVICES)
    deterministic: Any = key(choices=SWITCH)
    kernels: bool = key()
    compile: CompileConfig = field(default_factory=CompileConfig)
    activation_checkpointing: Any = key(at_least=1, choices=(False, True), whole=True)
    log_every: int = key(at_least=0)
    eval_every: int = key(at_least=0)
    sample_every: int = key(at_least=0)
    checkpoint_every: int = key(at_least=0)
    eval_tokens: int | None = key(at_least=2, at_most=MOST_TOKENS)
    eval_train_tokens: int = key(at_least=0, at_most=MOST_TOKENS)
    sample_prompt: str = key()
    sample: SampleConfig = field(default_factory=SampleConfig)
    sample_tokens: int = key(at_least=1, at_most=10**7)
    nonfinite: NonfiniteConfig = field(default_factory=NonfiniteConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)


@dataclass
class EmaConfig:
    enabled: bool = key()
    decay: float = key(at_least=0, below=1)
    update_every: int = key(at_least=1)
    start_step: int = key(at_least=0)


@dataclass
class CurriculumConfig:
    enabled: bool = key()
    start_seq_len: int | None = key(at_least=1)
    steps: int | None = key(at_least=1)


@dataclass
class DataloaderConfig:
    workers: int = key(at_least=0, at_most=1024)
    prefetch_factor: int = key(at_least=1, at_most=10**4)
    persistent_workers: bool = key()
    pin_memory: Any = key(choices=SWITCH)


@dataclass
class CheckpointConfig:
    enabled: bool = key()
    keep: int = key(at_least=2)
    asynchronous: Any = key(choices=SWITCH)


@dataclass
class DistributedConfig:
    backend: str = key(choices=("auto", "gloo", "nccl"))
    timeout_s: float = key(above=0)
    find_unused_parameters: Any = key(choices=SWITCH)


@dataclass
class TrainConfig:
    """Root of ``conf/train.yaml``. Nodes of type Any are groups; their ``_target_`` is their schema."""

    seed: int = key(at_least=0)
    resume: str | None = key(nonempty=True)
    init_from: str | None = key(nonempty=True)
    debug: bool = key()
    run: RunConfig = field(default_factory=RunConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    dataloader: DataloaderConfig = field(default_factory=DataloaderConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    model: Any = MISSING
    tokenizer: Any = MISSING
    dataset: Any = MISSING
    chat_template: Any = MISSING
    objective: Any = MISSING
    tools: Any = MISSING
    reward: Any = None
    optimizer: Any = MISSING
    schedule: Any = MISSING
    logger: Any = MISSING
    strategy: Any = MISSING
    lora: Any = MISSING


@dataclass
class IncludesTrainConfig(TrainConfig):
    """A root whose file includes ``train.yaml``: its schema is merged after it, so None would undo ``reward=…``."""

    reward: Any = MISSING


@dataclass
class DescribeConfig(IncludesTrainConfig):
    """Root of ``conf/describe.yaml``."""

    conversations: str | None = key(nonempty=True)
    vs: str | None = key(nonempty=True)


@dataclass
class VerifyResumeConfig(IncludesTrainConfig):
    """Root of ``conf/verify_resume.yaml``."""

    kills: int = key(at_least=0, at_most=10**4)
    kill_seed: int = key(at_least=0)
    out: str | None = key(nonempty=True)


@dataclass
class CompareConfig(IncludesTrainConfig):
    """Root of ``conf/compare.yaml``."""

    study: str | None = key(nonempty=True)
    question: str | None = key(nonempty=True)
    reference: str | None = key(nonempty=True)
    match: str = key(choices=("params", "active_params", "flops", "kv_bytes", "none"))
    match_by: list[str] | None = key()
    tolerance: float = key(above=0, below=1)
    validation: str | None = key(nonempty=True)
    seeds: Any = key(choices=("auto",), at_least=1, whole=True)
    metric: str | None = key(nonempty=True)
    direction: str | None = key(choices=("lower", "higher"))
    effect: float | None = key(above=0)
    max_minutes: float | None = key(above=0)
    tune: str | None = key(nonempty=True)
    tune_trials: int = key(at_least=1, at_most=10**4)
    evaluations: int = key(at_least=1)
    probes: list[str] = key()
    parallel: Any = key(choices=("auto",), at_least=1, whole=True)
    out: str | None = key(nonempty=True)
    dry_run: bool = key()
    budget: Any = MISSING


@dataclass
class ScalingKeys:
    budgets: list[float] = key()
    sizes: Any = key()
    head_dim: int = key(at_least=1)
    per_budget: int = key(at_least=3)
    tokens_per_parameter: list[float] = key()
    seeds: int = key(at_least=1, at_most=10**4)
    draws: int = key(at_least=100, at_most=10**6)
    targets: list[float] = key()
    reach: float = key(at_least=1)
    parallel: Any = key(choices=("auto",), at_least=1, whole=True)
    out: str | None = key(nonempty=True)


@dataclass
class ScalingConfig(IncludesTrainConfig):
    """Root of ``conf/scaling.yaml``."""

    scaling: ScalingKeys = field(default_factory=ScalingKeys)


@dataclass
class PipelineConfig(IncludesTrainConfig):
    """Root of ``conf/pipeline.yaml``."""

    until: str | None = key(nonempty=True)
    seeds: int = key(at_least=1, at_most=10**4)
    dry_run: bool = key()
    out: str | None = key(nonempty=True)
    recipe: Any = MISSING


@dataclass
class ProbeConfig(IncludesTrainConfig):
    """Root of ``conf/probe.yaml``."""

    seeds: int = key(at_least=1, at_most=10**4)
    examples: int = key(at_least=1, at_most=10**7)
    out: str = key(nonempty=True)
    tasks: Any = MISSING


@dataclass
class CoordCheckConfig(IncludesTrainConfig):
    """Root of ``conf/coord_check.yaml``."""

    widths: list[int] = key()
    more_heads: bool = key()
    steps: int = key(at_least=1)
    seeds: int = key(at_least=1, at_most=10**4)
    growth: float = key(above=0)
    shrinkage: float = key(above=0)
    out: str | None = key(nonempty=True)


@dataclass
class PrepareConfig:
    """Root of ``conf/prepare.yaml``."""

    stats: bool = key()
    picture: str | None = key()
    debug: bool = key()
    tokenizer: Any = MISSING
    dataset: Any = MISSING
    chat_template: Any = MISSING


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "describe": DescribeConfig,
    "verify_resume": VerifyResumeConfig,
    "compare": CompareConfig,
    "probe": ProbeConfig,
    "scaling": ScalingConfig,
    "pipeline": PipelineConfig,
    "coord_check": CoordCheckConfig,
    "prepare": PrepareConfig,
    "generate": GenerateConfig,
    "chat": ChatConfig,
    "serve": ServeConfig,
    "evaluate": EvaluateConfig,
    "pairs": PairsConfig,
    "export": ExportConfig,
    "import_hf": ImportConfig,
}
"""Root dataclass of each program."""


def fields_of(root: Any, path: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """The dotted key and the field of every key in a schema that is not itself a dataclass."""
    for item in fields(root):
        key_path = f"{path}{item.name}"
        if isinstance(item.type, type) and is_dataclass(item.type):
            yield from fields_of(item.type, f"{key_path}.")
        else:
            yield key_path, item


@cache
def register() -> None:
    """Register the schemas with Hydra, under names that no yaml file has."""
    for program, node in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{program}_schema", node=node)
