"""The check of a composed configuration: types, ranges and keys without effect."""

import ast
import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import tinyllm
from tests.support import sources
from tinyllm.config import schema
from tinyllm.config.checks import check
from tinyllm.config.no_effect import RULES
from tinyllm.config.option_files import conf_dir
from tinyllm.config.suggestions import setting_keys
from tinyllm.config.targets import type_problem
from tinyllm.errors import UserError

ROOTS = {
    "train": "train.yaml",
    "generate": "generate.yaml",
    "evaluate": "evaluate.yaml",
    "prepare": "prepare.yaml",
}


@pytest.mark.parametrize(
    ("value", "annotation", "allowed"),
    [
        (1, int, None),
        (1.0, int, "a whole number"),
        (True, int, "a whole number"),
        ("1", int, "a whole number"),
        (1, float, None),
        (1.5, float, None),
        (True, float, "a number"),
        (None, float, "a number"),
        (None, float | None, None),
        ("x", float | None, "a number or null"),
        ("x", str, None),
        (1, str, "text"),
        (True, bool, None),
        (1, bool, "true or false"),
        ("true", bool, "true or false"),
        ([0.9, 0.95], tuple[float, float], None),
        ([0.9], tuple[float, float], "a list of 2 values, each a number"),
        ([0.9, "x"], tuple[float, float], "a list of 2 values, each a number"),
        ("ab", list[str], "a list, each text"),
        (["a", 1], list[str], "a list, each text"),
        (["a", "b"], list[str], None),
        ({"any": "thing"}, dict[str, str], None),
    ],
)
def test_type_problem(value: object, annotation: Any, allowed: str | None) -> None:
    assert type_problem(value, annotation) == allowed


def fields_of(cls: Any, path: str = "") -> list[tuple[str, Any]]:
    """(dotted key, metadata) of every field in a schema that is not a group."""
    found = []
    for field in dataclasses.fields(cls):
        where = f"{path}{field.name}"
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            found += fields_of(field.type, f"{where}.")
        else:
            found.append((where, field.metadata))
    return found


@cache
def defaults(program: str) -> DictConfig:
    return tinyllm.compose(program=program)


def check_with(key: str, value: object, program: str) -> None:
    """Check a program's defaults with one value changed."""
    cfg = defaults(program).copy()
    OmegaConf.update(cfg, key, value)
    check(cfg, schema.SCHEMAS[program])


BOUNDED = [
    (program, key, metadata)
    for program, root in schema.SCHEMAS.items()
    if program in ROOTS
    for key, metadata in fields_of(root)
    if metadata.get("at_least") is not None or metadata.get("above") is not None
]


@pytest.mark.parametrize(("program", "key", "metadata"), BOUNDED, ids=lambda value: str(value)[:40])
def test_values_out_of_range_are_refused(program: str, key: str, metadata: dict[str, Any]) -> None:
    at_least, above = metadata["at_least"], metadata["above"]
    outside = int(at_least) - 1 if at_least is not None else int(above)
    with pytest.raises(UserError, match=rf"value out of range \({re.escape(key)}={outside}(\.0)?\): ") as refused:
        check_with(key, outside, program)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("program", "key", "metadata"),
    [
        (program, key, metadata)
        for program, root in schema.SCHEMAS.items()
        if program in ROOTS
        for key, metadata in fields_of(root)
        if metadata.get("choices")
    ],
    ids=lambda value: str(value)[:40],
)
def test_only_the_listed_choices_are_accepted(program: str, key: str, metadata: dict[str, Any]) -> None:
    for choice in metadata["choices"]:
        check_with(key, choice, program)
    with pytest.raises(UserError, match="value not allowed") as refused:
        check_with(key, "other", program)
    words = [str(choice).lower() for choice in metadata["choices"] if isinstance(choice, str)]
    assert all(word in refused.value.hint for word in words)


@pytest.mark.parametrize(
    "key", ["trainer.batch_size", "trainer.max_tokens", "trainer.seq_len", "model.n_layers", "seed"]
)
def test_an_absurdly_large_number_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"value out of range \({key}=10{'0' * 20}\): .*at most \d+"):
        check_with(key, 10**21, "train")


@pytest.mark.parametrize("program", ROOTS)
def test_every_key_of_a_root_file_has_a_type(program: str) -> None:
    written = OmegaConf.to_container(OmegaConf.load(conf_dir() / ROOTS[program]))
    assert isinstance(written, dict)
    written.pop("defaults")
    written.pop("hydra")
    typed = {key for key, _ in fields_of(schema.SCHEMAS[program])}
    assert set(setting_keys(written)) <= typed
    groups = {key for key in typed if "." not in key} - set(setting_keys(written))
    assert all((conf_dir() / group).is_dir() for group in groups)


@pytest.fixture(scope="module")
def names_in_code() -> set[Any]:
    """Attributes and constants outside ``config``, and keyword parameters everywhere."""
    names: set[Any] = set()
    for path in sources.files():
        is_config = sources.relative(path).startswith("tinyllm/config/")
        for node in ast.walk(sources.tree(path)):
            if isinstance(node, ast.FunctionDef):
                names |= {argument.arg for argument in node.args.kwonlyargs}
            elif isinstance(node, ast.Attribute) and not is_config:
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not is_config:
                names.add(node.value)
    return names


ONLY_HYDRAS_SIDE = {"debug", "resume"}
"""Keys that are read from the command line before a configuration exists."""


@pytest.mark.parametrize("program", ROOTS)
def test_every_key_of_a_root_file_is_read_by_code(program: str, names_in_code: set[Any]) -> None:
    written = OmegaConf.to_container(OmegaConf.load(conf_dir() / ROOTS[program]))
    assert isinstance(written, dict)
    written.pop("defaults")
    written.pop("hydra")
    read = names_in_code | ONLY_HYDRAS_SIDE
    dead = [key for key in setting_keys(written) if key.rpartition(".")[2] not in read]
    assert dead == []


@pytest.fixture(scope="module")
def offered() -> list[set[str]]:
    """The keys of several compositions."""
    return [
        set(setting_keys(OmegaConf.to_container(tinyllm.compose(*settings, program=program))))
        for program, settings in (
            ("train", ("dataset=text", "dataset.path=x", "moe=aux_free", "optimizer=muon")),
            ("train", ("dataset=hf",)),
            ("train", ("dataset=shakespeare",)),
            ("train", ("dataset=chat", "dataset.path=x")),
            ("generate", ()),
            ("describe", ()),
            ("prepare", ()),
        )
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.key)
def test_the_keys_of_no_effect_rules_exist(rule: Any, offered: list[set[str]]) -> None:
    assert any({rule.key, *rule.disables} <= keys for keys in offered)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["dataloader.prefetch_factor=4"], "dataloader.prefetch_factor"),
        (["dataloader.workers=0", "dataloader.persistent_workers=false"], "dataloader.persistent_workers"),
        (["trainer.sample_every=0", "trainer.sample_tokens=9"], "trainer.sample_tokens"),
        (["trainer.eval_every=0", "trainer.eval_train_tokens=9"], "trainer.eval_train_tokens"),
        (["trainer.nonfinite.action=stop", "trainer.nonfinite.patience=9"], "trainer.nonfinite.patience"),
        (
            ["dataset=text", "dataset.path=a", "dataset.val_path=b", "dataset.val_fraction=0.2"],
            "dataset.val_fraction",
        ),
        (["model.block.ffn.d_ff=64", "model.d_ff=32"], "model.d_ff"),
        (["moe=aux_loss", "model.block.moe.expert_d_ff=64", "model.d_ff=32"], "model.d_ff"),
        (["model.block.attn.sinks=4"], "model.block.attn.sinks"),
        (["ema.decay=0.9"], "ema.decay"),
        (["model.n_kv_heads=2"], "model.n_kv_heads"),
        (["attn=mqa", "model.n_kv_heads=1"], "model.n_kv_heads"),
    ],
)
@pytest.mark.every(3)
def test_a_key_without_effect_is_refused(settings: list[str], key: str) -> None:
    with pytest.raises(UserError, match="the key has no effect here") as refused:
        tinyllm.compose(*settings)
    assert refused.value.key == key
    tinyllm.compose(*(one for one in settings if not one.startswith(f"{key}=")))  # the rest is fine


@pytest.mark.parametrize(
    "settings",
    [
        ["dataloader.workers=2", "dataloader.prefetch_factor=4"],
        ["trainer.sample_prompt=a"],
        ["attn=gqa", "model.n_kv_heads=2"],
        ["model.d_ff=64"],
        ["ffn=glu", "model.d_ff=64"],
        ["model.attn_dropout=0.1"],
    ],
)
def test_a_key_with_an_effect_is_accepted(settings: list[str]) -> None:
    tinyllm.compose(*settings)


def test_only_similar_names_are_suggested() -> None:
    for wrong, meant in {
        "trainer.max_step": "trainer.max_steps",
        "trainer.batchsize": "trainer.batch_size",
        "optimizer.weight_decy": "optimizer.weight_decay",
        "model.n_layer": "model.n_layers or model.layers",
        "max_steps": "trainer.max_steps",
        "trainer.lr": "optimizer.lr",
        "norm.eps": "model.norm.eps",
        "attn.qk_norm": "model.block.attn.qk_norm",
    }.items():
        with pytest.raises(UserError) as refused:
            tinyllm.compose(f"+{wrong}=1")
        assert refused.value.hint == f"did you mean {meant}?"
    with pytest.raises(UserError, match="trainer takes activation_checkpointing, batch_size, "):
        tinyllm.compose("+trainer.zzz=1")


def test_a_missing_value_is_reported_with_its_key() -> None:
    with pytest.raises(UserError, match=r"value missing \(dataset.path=\?\?\?\): set it: dataset.path=…"):
        tinyllm.compose("dataset=text")


def test_errors_are_one_line(tmp_path: Path) -> None:
    error = UserError("two\nlines", key="a.b", value="c\nd", file=tmp_path, hint="do\n  this")
    assert str(error) == f"two lines (a.b=c d, {tmp_path}): do this"
    assert str(UserError("plain")) == "plain"
    assert str(UserError("off", key="a", value=None)) == "off (a=null)"
    assert str(UserError("off", key="a", value=False)) == "off (a=false)"
