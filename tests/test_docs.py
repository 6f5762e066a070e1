"""What the documents say is what the program does."""

import re
import shlex
import subprocess

import pytest

import tinyllm
from tests.support import readme
from tests.support.sources import ROOT
from tinyllm.config import reference

README = readme.README.read_text(encoding="utf-8")
TINYLLM = [line for line in readme.commands() if re.search(r"(-m tinyllm\.|tinyllm-)(train|prepare|describe)\b", line)]


def test_the_option_reference_is_up_to_date() -> None:
    written = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert written == reference.markdown(), "run: python -m tinyllm.reference > docs/options.md"


def test_the_groups_in_the_readme_are_up_to_date() -> None:
    assert reference.groups_table("train") in README, (
        "python -c 'from tinyllm.reference import *; print(groups_table(\"train\"))'"
    )


@pytest.mark.parametrize("line", readme.commands())
def test_the_shell_understands_every_example(line: str) -> None:
    subprocess.run(["bash", "-n", "-c", line], check=True)
    assert not re.search(r"=\S*[\[\]{}()*?<>|&;]", re.sub(r"'[^']*'", "", line).replace("&&", "")), (
        "quote for the shell"
    )


@pytest.mark.parametrize("line", TINYLLM)
def test_every_example_composes(line: str) -> None:
    words = shlex.split(line)
    at = next(i for i, word in enumerate(words) if re.fullmatch(r"tinyllm[.-]\w+", word))
    program = re.split("[.-]", words[at])[1]
    settings = [word for word in words[at + 1 :] if "=" in word and not word.startswith("-")]
    if {"--config-dir", "-m"} & set(words[at + 1 :]) or any(word.startswith("resume=") for word in settings):
        settings = [word for word in settings if "," not in word and not word.startswith(("attn=gated", "resume="))]
    assert tinyllm.compose(*settings, program=program)


def test_every_file_that_is_linked_is_there() -> None:
    for path in [
        readme.README,
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
    ]:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://")):
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_blocks_that_other_tests_run_are_there() -> None:
    for name in ("run", "test", "python", "attention class", "attention yaml", "attention command"):
        assert readme.block(name).strip()
    with pytest.raises(LookupError):
        readme.block("no such block")


def test_the_version_is_the_one_of_the_changelog() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest and newest[1] == tinyllm.__version__
    assert f'version = "{tinyllm.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
