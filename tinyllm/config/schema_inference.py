"""Types and ranges of the keys of the programs that use a trained model, as in :mod:`tinyllm.config.schema`."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from tinyllm.config.schema_key import (
    DEVICES,
    MOST_SEQUENCES,
    MOST_TOKENS,
    PRECISIONS,
    QUANTIZATIONS,
    SWITCH,
    WEIGHTS,
    key,
)


@dataclass
class GenerateConfig:
    """Root of ``conf/generate.yaml``."""

    run: str | None = key()
    prompt: str = key()
    prompts: str | None = key()
    max_new_tokens: int = key(at_least=1)
    temperature: float = key(at_least=0)
    top_k: int | None = key(at_least=1)
    top_p: float | None = key(above=0)
    min_p: float | None = key(at_least=0)
    repetition_penalty: float = key(above=0)
    stop: Any = key()
    bos: Any = key(choices=SWITCH)
    special: bool = key()
    n_samples: int = key(at_least=1, at_most=10**6)
    seed: int = key(at_least=0)
    interactive: bool = key()
    checkpoint: str = key()
    weights: str = key(choices=WEIGHTS)
    kv_cache: bool = key()
    precision: str = key(choices=PRECISIONS)
    quantize: str | None = key(choices=QUANTIZATIONS)
    decode_kernels: bool = key()
    device: str = key(choices=DEVICES)
    debug: bool = key()


@dataclass
class ChatConfig:
    """Root of ``conf/chat.yaml``."""

    run: str | None = key()
    system: str | None = key(nonempty=True)
    max_new_tokens: int = key(at_least=1)
    temperature: float = key(at_least=0)
    top_k: int | None = key(at_least=1)
    top_p: float | None = key(above=0)
    min_p: float | None = key(at_least=0)
    repetition_penalty: float = key(above=0)
    seed: int = key(at_least=0)
    checkpoint: str = key()
    weights: str = key(choices=WEIGHTS)
    precision: str = key(choices=PRECISIONS)
    decode_kernels: bool = key()
    device: str = key(choices=DEVICES)
    debug: bool = key()
    tools: Any = MISSING


@dataclass
class ServeKeys:
    host: str = key(nonempty=True)
    port: int = key(at_least=0, at_most=65535)
    api_key: str | None = key(nonempty=True)
    max_batch: int = key(at_least=1, at_most=4096)
    max_tokens_total: int | None = key(at_least=1)
    max_waiting: int = key(at_least=0, at_most=10**6)
    max_body_bytes: int = key(at_least=1, at_most=2**30)
    grace_s: float = key(at_least=0, at_most=86400)
    cors: list[str] | None = key()


@dataclass
class ServeConfig:
    """Root of ``conf/serve.yaml``."""

    run: str | None = key()
    runs: Any = key()
    serve: ServeKeys = field(default_factory=ServeKeys)
    bos: Any = key(choices=SWITCH)
    special: bool = key()
    checkpoint: str = key()
    weights: str = key(choices=WEIGHTS)
    precision: str = key(choices=PRECISIONS)
    quantize: str | None = key(choices=QUANTIZATIONS)
    decode_kernels: bool = key()
    device: str = key(choices=DEVICES)
    debug: bool = key()


@dataclass
class AnswersConfig:
    n_samples: int = key(at_least=1, at_most=10**4)
    temperature: float = key(at_least=0)
    max_new_tokens: int = key(at_least=1, at_most=10**6)
    seed: int = key(at_least=0)


@dataclass
class EvaluateConfig:
    """Root of ``conf/evaluate.yaml``."""

    run: str | None = key()
    versus: str | None = key(nonempty=True)
    split: str = key(choices=("val", "train", "test"))
    checkpoint: str = key()
    weights: str = key(choices=WEIGHTS)
    seq_len: int | None = key(at_least=1)
    stride: int | None = key(at_least=1)
    eval_tokens: int | None = key(at_least=2, at_most=MOST_TOKENS)
    batch_size: int | None = key(at_least=1, at_most=MOST_SEQUENCES)
    precision: str = key(choices=PRECISIONS)
    quantize: str | None = key(choices=QUANTIZATIONS)
    device: str = key(choices=DEVICES)
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    debug: bool = key()
    tokenizer: Any = None
    dataset: Any = None
    tools: Any = None
    reward: Any = None


@dataclass
class PairsConfig:
    """Root of ``conf/pairs.yaml``."""

    run: str | None = key()
    out: str = key(nonempty=True)
    split: str = key(choices=("train", "val", "test"))
    n_pairs: int = key(at_least=1, at_most=10**7)
    n_prompts: int | None = key(at_least=1, at_most=10**7)
    n_samples: int = key(at_least=2, at_most=10**4)
    temperature: float = key(above=0)
    max_new_tokens: int = key(at_least=1, at_most=10**6)
    seed: int = key(at_least=0)
    checkpoint: str = key()
    weights: str = key(choices=WEIGHTS)
    precision: str = key(choices=PRECISIONS)
    device: str = key(choices=DEVICES)
    debug: bool = key()
    tokenizer: Any = None
    dataset: Any = None
    tools: Any = None
    reward: Any = None


@dataclass
class ExportConfig:
    """Root of ``conf/export.yaml``."""

    run: str | None = key()
    format: str = key(choices=("hf",))
    out: str | None = key()
    checkpoint: str = key()
    weights: str = key(choices=WEIGHTS)
    debug: bool = key()


@dataclass
class ImportConfig:
    """Root of ``conf/import_hf.yaml``."""

    path: str | None = key()
    out: str | None = key()
    debug: bool = key()
