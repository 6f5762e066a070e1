"""Reading yaml files with their comments, --help and the option reference."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tinyllm.config import reference, schema
from tinyllm.config.cli.help import first_sentence, help_text
from tinyllm.config.option_docs import Key, programs, read_file, read_program
from tinyllm.config.option_files import conf_dir

OPTION_FILES = sorted(conf_dir().rglob("*.yaml"))


def shown(path: Path) -> str:
    return path.relative_to(conf_dir()).as_posix()


def test_comments_beside_and_above_keys(tmp_path: Path) -> None:
    file = tmp_path / "attn" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(
        "# @package model.block.attn\n"
        "# What it is. More\n"
        "# python -m tinyllm.train attn=mine\n"
        "# about it.\n"
        "_target_: mine.Mine\n"
        "_partial_: true\n"
        "behind: 1e-3  # after the value\n"
        "# above the key,\n"
        "# on two lines\n"
        "above: [1, 2]\n"
        'quoted: "# no comment"   # a comment\n'
        "bare:\n"
        "nested:\n"
        "  # inside\n"
        "  deep: null\n"
        "empty: {}  # no keys\n",
        encoding="utf-8",
    )
    read = read_file(file)
    assert (read.name, read.package, read.meaning) == (
        "mine",
        "model.block.attn",
        "What it is. More about it.",
    )
    assert list(read.keys.values()) == [
        Key(path="behind", default="1e-3", meaning="after the value"),
        Key(path="above", default="[1, 2]", meaning="above the key, on two lines"),
        Key(path="quoted", default='"# no comment"', meaning="a comment"),
        Key(path="bare", default="", meaning=""),
        Key(path="nested.deep", default="null", meaning="inside"),
        Key(path="empty", default="{}", meaning="no keys"),
    ]


def test_a_file_on_top_of_another_keeps_its_comments(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("# Base.\na: 1  # first\nb: 2  # second\n")
    (tmp_path / "top.yaml").write_text(
        "# Top.\ndefaults:\n  - base\n  - group: one\n  - other: null\n  - some: [a, b]\n  - changed: one\n"
        "  - override hydra/x: none\n  - override changed: another\n  - _self_\nb: 3\n"
    )
    read = read_file(tmp_path / "top.yaml")
    assert [(key.path, key.default, key.meaning) for key in read.keys.values()] == [
        ("a", "1", "first"),
        ("b", "3", "second"),
    ]
    assert read.choices == {"group": "one", "other": None, "some": "[a,b]", "changed": "another"}


@pytest.mark.parametrize("path", OPTION_FILES, ids=shown)
def test_every_option_file_and_key_has_a_description(path: Path) -> None:
    read = read_file(path)
    assert read.meaning.endswith((".", ".)")), "the comment at the top is a sentence"
    if path.parent.name != "experiment":  # its keys are explained where they belong
        assert [key.path for key in read.keys.values() if not key.meaning] == []


def test_every_group_and_its_default_exist() -> None:
    for name in programs():
        for group in read_program(name).groups:
            options = [option.name for option in group.options]
            chosen = [option for option in (group.default or "").strip("[]").split(",") if option]
            assert set(chosen) <= set(options), f"{name}: {group.name}={group.default}"
            assert [option.name for option in group.chosen] == sorted(chosen)


@pytest.mark.parametrize("name", programs())
def test_the_shown_defaults_equal_the_composed_ones(name: str) -> None:
    schema.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(name)
    program = read_program(name)
    keys = {
        f"{option.package}.{key.path}": key.default
        for group in program.groups
        for option in group.options
        if option in group.chosen and option.package
        for key in option.keys.values()
    }
    keys |= {key.path: key.default for key in program.keys.values()}  # the root file takes precedence
    assert keys
    for path, default in keys.items():
        if default in ("???", "[…]"):
            continue
        wanted = OmegaConf.create(f"value: {default}").value
        parent, _, leaf = path.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        assert leaf in node, path
        assert node[leaf] == wanted, path


@pytest.mark.parametrize("name", programs())
@pytest.mark.parametrize("width", [80, 110])
def test_help_lists_every_group_and_option(name: str, width: int) -> None:
    text = help_text(name, width=width)
    words = set(text.split())
    for group in read_program(name).groups:
        if group.options:
            assert f"{group.name}={group.default or '…'}" in words
            assert {option.name for option in group.options} <= words
    assert f"python -m tinyllm.{name}" in text
    assert text.isprintable() or "\n" in text
    assert max(len(line) for line in text.splitlines() if " -m tinyllm" not in line) <= width


def test_keys_named_in_the_help_exist() -> None:
    """A renamed key must not remain in an example or in the list of common settings."""
    from tinyllm.config.cli.help import _COMMON, _EXAMPLES

    for name in set(_EXAMPLES) & set(programs()):
        program = read_program(name)
        keys = set(program.keys) | {
            f"{group.package}.{key}" for group in program.groups for option in group.options for key in option.keys
        }
        groups = {group.name: {option.name for option in group.options} for group in program.groups}
        assert set(_COMMON.get(name, ())) <= keys
        words = [word for _, example in _EXAMPLES[name] for word in example.split() if "=" in word]
        for word in words:
            left, _, right = word.partition("=")
            left = re.sub(r"^stages\.\w+\.", "", left)  # a setting of one stage of a pipeline
            assert left in keys or set(right.strip("[]").split(",")) <= groups.get(left, set()), f"{name}: {word}"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_printed_without_torch(flag: str) -> None:
    code = (
        "import sys, tinyllm.train\n"
        f"sys.argv = ['tinyllm-train', {flag!r}]\n"
        "try:\n    tinyllm.train.main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("Train a model.") and ran.stderr == ""


def test_the_first_sentence() -> None:
    assert first_sentence("One. Two.") == "One."
    assert first_sentence("By S. Zhang (2019), eps 1.0e-5. More.") == "By S. Zhang (2019), eps 1.0e-5."
    assert first_sentence("Alone") == "Alone"


def test_the_reference_lists_every_option_and_key() -> None:
    text = reference.markdown()
    for name in programs():
        program = read_program(name)
        assert f"\n## {name}\n" in text
        for group in program.groups:
            for option in group.options:
                assert f"`{option.name}`" in text
                if group.package:
                    assert all(f"| `{group.package}.{key}` |" in text for key in option.keys)
        assert all(f"`{key}`" in text for key in program.keys)
    assert "<" not in text.replace("`<", "").replace('["<\\|endoftext\\|>"]', "").replace("&lt;", "")
