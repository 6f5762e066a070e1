"""A config.json with one changed entry is refused in one line or gives transformers' logits; never a Python error."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import hub
from tinyllm.errors import UserError
from tinyllm.interop.directory import ModelDirectory

pytestmark = pytest.mark.filterwarnings("ignore:.*has no tokenizer")
CLOSE = 1e-4
REMOVED = object()
VALUES = (None, 0, -1, "x", [], {}, True, False, 1.5, 10**9, 10**25, 2.0**70, "${oc.env:HOME}", REMOVED)
NEW = ("foo", "rope_scaling", "rope_theta", "layer_types", "sliding_window", "attn_logit_softcapping", "is_causal")
BENIGN = ("pad_token_id", "initializer_range")
"""Entries with further conditions in transformers that do not change logits."""


@pytest.fixture(scope="module", params=hub.FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model of each family, and its directory."""
    theirs = hub.random_model(request.param, 5)
    return theirs, hub.saved(theirs, tmp_path_factory.mktemp("entries") / "model")


def changed(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every change of one entry, nested ones included, with its description."""
    nested = [(name, inner) for name, value in config.items() if isinstance(value, dict) for inner in value]
    for path in [*((name,) for name in dict.fromkeys([*config, *NEW])), *nested]:
        for value in VALUES:
            other = json.loads(json.dumps(config))
            node = other if len(path) == 1 else other[path[0]]
            if value is REMOVED:
                node.pop(path[-1], None)
            else:
                node[path[-1]] = value
            if json.dumps(other) != json.dumps(config):
                yield f"{'.'.join(path)}={'removed' if value is REMOVED else value!r}", other


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_changed_entry_is_read_or_refused_in_one_line(model: tuple[Any, Path], every: int) -> None:
    _, path = model
    config = json.loads((path / "config.json").read_text())
    refused = 0
    for what, other in [*changed(config)][::every]:
        (path / "config.json").write_text(json.dumps(other))
        try:
            ModelDirectory(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 600, what
            assert "config.json" in str(error), what
    (path / "config.json").write_text(json.dumps(config))
    assert refused > 20


@pytest.mark.exhaustive
def test_changed_entry_that_is_read_gives_the_logits_of_transformers(model: tuple[Any, Path]) -> None:
    theirs, path = model
    config, ids = json.loads((path / "config.json").read_text()), hub.ids()
    for what, other in changed(config):
        (path / "config.json").write_text(json.dumps(other))
        try:
            ours = hub.logits(hub.load(path), ids)
        except UserError:
            continue
        if not what.startswith(BENIGN):
            again = type(theirs).from_pretrained(path, dtype=torch.float32).eval()
            assert (hub.logits(again, ids) - ours).abs().max() <= CLOSE, what
    (path / "config.json").write_text(json.dumps(config))


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12}


@pytest.mark.parametrize(
    ("family", "entries"),
    [
        ("llama", {"rope_scaling": YARN}),
        ("llama", {"rope_scaling": YARN, "rope_theta": 77.0}),
        ("llama", {"rope_scaling": {}, "rope_parameters": None, "rope_theta": 50}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2}}),
        (
            "qwen2",
            {
                "use_sliding_window": True,
                "sliding_window": 7,
                "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            },
        ),
        ("smollm3", {"no_rope_layers": [1, 0, 0], "layer_types": None}),
        ("deepseek_v3", {"n_group": 3, "topk_group": 1, "num_experts_per_tok": 2}),
    ],
    ids=str,
)
def test_entries_mean_the_same_as_in_transformers(family: str, entries: dict[str, Any], tmp_path: Path) -> None:
    theirs = hub.random_model(family, 0)
    path = hub.saved(theirs, tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | entries))
    again = type(theirs).from_pretrained(path).eval()
    expected = hub.logits(again, hub.ids())
    assert (hub.logits(hub.load(path), hub.ids()) - expected).abs().max() <= CLOSE
