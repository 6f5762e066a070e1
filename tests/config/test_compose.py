"""Composition: every option of every group, alone and with the choices that other options make."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

import tinyllm
from tinyllm.config import schema
from tinyllm.config.checks import check
from tinyllm.config.option_docs import programs, read_program
from tinyllm.config.option_files import conf_dir, groups
from tinyllm.config.targets import resolve_target, walk_nodes
from tinyllm.errors import UserError
from tinyllm.utils.nested import flatten
from tinyllm.utils.signatures import parameters_of
from tinyllm.utils.yaml_files import read_yaml

GROUPS = groups()
REQUIRED = {
    "dataset=fineweb": ("dataset.max_tokens=1e6",),
    "reward=model": ("reward.model.run=somewhere",),
    "dataset=mixture": ("dataset.sources={a:'dataset=pydocs'}",),
    "experiment=shakespeare_char_cpu_muon": ("dataset.path=somewhere",),
    "layers=pattern": ("model.layers.kinds={a:''}", "model.layers.pattern=[a]"),
    "layers=jsonl": (
        "model.n_layers=1",
        'model.layers.json={"attn": "mha", "n_head": 4, "moe": false, "up_dim": 8, "non_linearity": "relu"}',
    ),
}
"""Keys without a default, other than paths."""
OPTIONS = sorted((file.parent.name, file.stem) for file in conf_dir().glob("*/*.yaml"))
TOGETHER = (
    *("attn", "ffn", "moe", "norm", "pos", "model", "parametrization"),
    *("optimizer", "schedule", "strategy", "logger", "objective", "reward", "tools", "lora"),
)
"""Groups whose options can be chosen together."""


def composed(*overrides: str, **more: Any) -> DictConfig:
    """Compose, and set the keys that have no default."""
    needed = [
        f"{group}.path=somewhere"
        for group in ("dataset", "tokenizer", "chat_template", "recipe")
        if wants_path(group, overrides)
    ]
    if any(one.startswith("chat_template=") for one in overrides):
        needed += ["dataset=chat", "dataset.path=somewhere"]
    described = [one for choice in overrides for one in REQUIRED.get(choice, ())]
    return tinyllm.compose(*overrides, *needed, *described, **more)


def wants_path(group: str, overrides: tuple[str, ...]) -> bool:
    """Whether the option chosen last for a group, also by an experiment, has no default path."""
    chosen = [one.partition("=")[2] for one in overrides if one.startswith(f"{group}=")]
    for name in (one.partition("=")[2] for one in overrides if one.startswith("experiment=")):
        written = read_yaml(conf_dir() / "experiment" / f"{name}.yaml")
        chosen += [entry[f"override /{group}"] for entry in written["defaults"] if f"override /{group}" in entry]
    return bool(chosen) and read_yaml(conf_dir() / group / f"{chosen[-1]}.yaml").get("path") == "???"


def program_with(groups: Iterable[str]) -> str:
    """The program with these groups and the fewest others."""
    wanted = set(groups)
    return min((name for name in programs() if groups_of(name) >= wanted), key=lambda name: len(groups_of(name)))


@cache
def groups_of(program: str) -> set[str]:
    return {group.name for group in read_program(program).groups}


def compositions() -> list[tuple[tuple[str, str], ...]]:
    """Groups and options such that each option is in one; those of different groups together, since composing is slow.

    Options that choose options of other groups, or need some, are alone.
    """
    rows: dict[int, list[tuple[str, str]]] = {}
    for group in TOGETHER:
        for index, option in enumerate(option for other, option in OPTIONS if other == group):
            rows.setdefault(index, []).append((group, option))
    alone = [(choice,) for choice in OPTIONS if choice[0] not in TOGETHER]
    return [*map(tuple, rows.values()), *alone]


def package_of(file: Path) -> str:
    """The node that an option file fills."""
    found = re.match(r"# @package (\S+)", file.read_text(encoding="utf-8"))
    assert found is not None, f"{file} does not begin with # @package"
    return found[1]


def plain(cfg: Any) -> Any:
    return OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.parametrize("program", sorted(schema.SCHEMAS))
def test_the_defaults_compose(program: str) -> None:
    cfg = tinyllm.compose(program=program)
    assert "hydra" not in cfg
    assert cfg.debug is False


@pytest.mark.parametrize("choices", compositions(), ids=lambda choices: " ".join(map("=".join, choices)))
def test_every_option_composes_and_is_what_was_chosen(choices: tuple[tuple[str, str], ...]) -> None:
    program = program_with(group for group, _ in choices)
    chosen = composed(*map("=".join, choices), program=program)
    # all parameters are keyword-only and named, so that unknown keys are found without building anything
    for path, described in walk_nodes(plain(chosen), ""):
        target = described["_target_"]
        parameters = parameters_of(resolve_target(described, path=path))
        assert parameters is not None, f"{target} takes anything"
        given = [p for name, p in parameters.items() if name not in ("params", "model")]  # passed by the program
        assert all(p.kind is p.KEYWORD_ONLY for p in given), target
    for group, option in choices:
        file = conf_dir() / group / f"{option}.yaml"
        package = package_of(file)
        written = read_yaml(file)
        written.pop("defaults", None)
        if package == "model" and written.get("d_ff", 0) is None:
            written["d_ff"] = 4 * written["d_model"]
        if package == "optimizer" and written["lr"] is None:
            del written["lr"]  # filled in by a rule: test_learning_rates.py
        node = chosen if package == "_global_" else OmegaConf.select(chosen, package)
        other = [key for key, value in flatten(written) if value != "???" and OmegaConf.select(node, key) != value]
        assert other == []
        if "_target_" in node:
            with open_dict(node):
                node.no_such_key = 1
                with pytest.raises(UserError, match="unknown key") as refused:
                    check(chosen, schema.SCHEMAS[program])
                del node.no_such_key
            assert refused.value.key == f"{package}.no_such_key"


@pytest.mark.parametrize("model", [option for group, option in OPTIONS if group == "model"])
@pytest.mark.every(3)
def test_the_command_line_overrides_the_tokenizer_of_a_model_size(model: str) -> None:
    chosen = tinyllm.compose("tokenizer=char", f"model={model}")
    assert plain(chosen.tokenizer) == plain(tinyllm.compose("tokenizer=char", program="prepare").tokenizer)
    assert chosen.tokenizer._target_.endswith(".CharTrainer") and "vocab_size" not in chosen.tokenizer


def test_options_choose_options_of_other_groups() -> None:
    assert tinyllm.compose("model=tiny").tokenizer.vocab_size == 32000
    assert tinyllm.compose("model=gpt2").tokenizer.vocab_size == 50257
    assert tinyllm.compose("model=gpt2", "tokenizer=bpe").tokenizer.vocab_size == 32000
    assert tinyllm.compose("model=7b").model.block.ffn.gate == "silu"
    assert tinyllm.compose("model=7b", "ffn=gelu").model.block.ffn.activation == "gelu"
    numbers = composed("dataset=npy")
    assert numbers.tokenizer._target_.endswith("IdsTrainer")
    assert composed("dataset=npy", "tokenizer=byte").tokenizer._target_.endswith("ByteTrainer")
    assert composed("model=tiny", "dataset=npy").tokenizer._target_.endswith("IdsTrainer")


def test_choosing_a_model_keeps_the_attention() -> None:
    for order in (("attn=gqa", "model=large"), ("model=large", "attn=gqa")):
        cfg = tinyllm.compose(*order)
        assert cfg.model.block.attn._target_.endswith("GQA")
        assert (cfg.model.d_model, cfg.model.n_layers, cfg.model.n_kv_heads) == (1600, 32, 5)


@pytest.mark.parametrize("experiment", [option for group, option in OPTIONS if group == "experiment"])
@pytest.mark.every(3)
def test_the_command_line_overrides_an_experiment(experiment: str) -> None:
    recipe = composed(f"experiment={experiment}")
    other = composed(
        f"experiment={experiment}", "model.n_layers=7", "seed=5", "optimizer.lr=0.5", "attn=mqa", "pos=none"
    )
    assert (other.model.n_layers, other.seed, other.optimizer.lr) == (7, 5, 0.5)
    assert other.model.block.attn._target_.endswith("MQA")
    assert other.model.pos._target_.endswith("NoPosition")
    assert other.trainer == recipe.trainer


def test_composing_twice_gives_the_same_result() -> None:
    first = plain(tinyllm.compose("model=tiny", "attn=gqa"))
    tinyllm.compose("model=large")
    assert plain(tinyllm.compose("model=tiny", "attn=gqa")) == first


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the user's own options; modules beside it can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    for group in ("attn", "experiment"):
        (tmp_path / "conf" / group).mkdir(parents=True)
    return tmp_path


def test_the_users_own_class_and_option_file(mine: Path) -> None:
    (mine / "their_attention.py").write_text(
        "from tinyllm.nn.attention.mha import MHA\n\n\n"
        "class Mine(MHA):\n    def __init__(self, *, strength: float, **more):\n        super().__init__(**more)\n"
    )
    (mine / "conf" / "attn" / "mine.yaml").write_text(
        "# @package model.block.attn\n# Mine.\n_target_: their_attention.Mine\n_partial_: true\n"
        "strength: 2.0  # how strong\nqk_norm: false\n"
    )
    cfg = tinyllm.compose("attn=mine", "model.block.attn.strength=3", config_dir=mine / "conf")
    assert cfg.model.block.attn.strength == 3
    with pytest.raises(UserError, match=r"wrong type \(model.block.attn.strength=much\): must be a number"):
        tinyllm.compose("attn=mine", "model.block.attn.strength=much", config_dir=mine / "conf")
    with pytest.raises(UserError, match="one of gqa, mha, mla, mqa"):
        tinyllm.compose("attn=mine")
    with pytest.raises(UserError, match=r"attn=min\): did you mean mine\? one of gqa, mha, mine, mla, mqa"):
        tinyllm.compose("attn=min", config_dir=mine / "conf")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_such_module.Mine", "No module named 'no_such_module'"),
        ("os.NoSuchClass", "has no attribute 'NoSuchClass'"),
        ("NoModule", "package.module.Class"),
    ],
)
def test_an_option_file_that_names_a_missing_class(mine: Path, target: str, said: str) -> None:
    (mine / "conf" / "attn" / "mine.yaml").write_text(
        f"# @package model.block.attn\n_target_: {target}\n_partial_: true\n"
    )
    with pytest.raises(UserError) as refused:
        tinyllm.compose("attn=mine", config_dir=mine / "conf")
    assert str(refused.value).startswith(f"no such class (model.block.attn._target_={target}): ")
    assert said in str(refused.value)


def test_an_option_file_with_a_duplicate_key(mine: Path) -> None:
    file = mine / "conf" / "attn" / "mine.yaml"
    file.write_text("# @package model.block.attn\n_target_: a.B\nqk_norm: true\nqk_norm: false\n")
    with pytest.raises(UserError) as refused:
        tinyllm.compose("attn=mine", config_dir=mine / "conf")
    assert str(file) in str(refused.value)
    assert "qk_norm" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_option_file_that_is_not_yaml(mine: Path) -> None:
    file = mine / "conf" / "attn" / "mine.yaml"
    file.write_text("a: [1,\nb: 2\n")
    with pytest.raises(UserError, match=re.escape(str(file))):
        tinyllm.compose("attn=mine", config_dir=mine / "conf")


def test_an_experiment_that_sets_a_key_without_effect(mine: Path) -> None:
    (mine / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /attn: mha\n  - _self_\nmodel:\n  n_kv_heads: 2\n"
    )
    with pytest.raises(UserError, match=r"no effect here \(model.n_kv_heads=2\): not used by MHA"):
        tinyllm.compose("experiment=mine", config_dir=mine / "conf")
    cfg = tinyllm.compose("experiment=mine", "attn=gqa", config_dir=mine / "conf")
    assert cfg.model.n_kv_heads == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("trainer:\n  max_step: 3\n", "unknown key trainer.max_step (FILE): did you mean trainer.max_steps?"),
        ("trainer:\n  max_steps: many\n", "wrong type trainer.max_steps (FILE): must be a whole number"),
        ("model:\n  d_ff: wide\n", "wrong type (model.d_ff=wide): must be a whole number"),
        ("defaults:\n  - override /attn: mlb\n", "no such option (attn=mlb): one of gqa, mha, mla, mqa"),
    ],
)
def test_an_experiment_with_a_mistake(mine: Path, content: str, said: str) -> None:
    (mine / "conf" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}")
    with pytest.raises(UserError) as refused:
        tinyllm.compose("experiment=mine", config_dir=mine / "conf")
    assert str(refused.value) == said.replace("FILE", "experiment/mine.yaml")


@pytest.mark.parametrize("group", ["attn", "experiment"])
def test_an_option_file_without_its_package_line(mine: Path, group: str) -> None:
    (mine / "conf" / group / "mine.yaml").write_text("trainer:\n  max_steps: 3\n")
    with pytest.raises(UserError, match="does not say where its keys belong") as refused:
        tinyllm.compose(f"{group}=mine", config_dir=mine / "conf")
    assert f"({group}/mine.yaml): its first line must be '# @package" in str(refused.value)
