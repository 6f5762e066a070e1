"""What the files of a run directory are called."""

RUN_JSON = "run.json"
CONFIG = "config.yaml"
OVERRIDES = "overrides.yaml"
TOKENIZER = "tokenizer.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
