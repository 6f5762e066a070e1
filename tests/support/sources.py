"""The package's own source files as syntax trees, for the tests that read the code instead of running it."""

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tinyllm"


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import statement's module, and whether it is carried out when the file is imported."""

    module: str
    at_top: bool
    line: int


@cache
def files() -> list[Path]:
    """Every source file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def relative(path: Path) -> str:
    """The path as one writes it: ``tinyllm/nn/loss.py``."""
    return path.relative_to(ROOT).as_posix()


def module(path: Path) -> str:
    """The dotted name that imports the file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(module: ast.Module) -> Iterator[Import]:
    """Every import of a file but those for type checkers only."""
    yield from _imports(module, at_top=True)


def _imports(node: ast.AST, *, at_top: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for name in node.names:
            yield Import(module=name.name, at_top=at_top, line=node.lineno)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: a relative import"
        for name in node.names:
            yield Import(module=f"{node.module}.{name.name}", at_top=at_top, line=node.lineno)
    elif not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, at_top=at_top and not inside)


def tracked(*suffixes: str) -> list[Path]:
    """Files that git knows, or would take, with one of the suffixes."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in found if path.is_file() and (not suffixes or path.suffix in suffixes)]
