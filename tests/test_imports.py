"""Imports run one way, and what is heavy is loaded only by what uses it."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support import sources

# Layer -> the layers of tinyllm it may use, and the libraries. Modules right in the package (entry points and
# what they share) may use everything; errors, utils and the version may be used by all.
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "utils": (set(), {"rich", "yaml"}),
    "nn": (set(), {"torch"}),
    "models": ({"nn"}, {"torch"}),
    "optim": (set(), {"torch", "numpy", "bitsandbytes"}),
    "tokenizers": (set(), {"numpy", "tokenizers", "tiktoken"}),
    "data": ({"tokenizers"}, {"torch", "numpy"}),
    "inference": ({"nn", "tokenizers", "data"}, {"torch", "numpy"}),
    "training": ({"nn", "optim", "tokenizers", "data", "inference"}, {"torch", "numpy", "safetensors"}),
    "interop": ({"nn", "models", "tokenizers", "data", "training"}, {"torch", "safetensors"}),
    "loggers": ({"training"}, {"rich", "matplotlib", "wandb", "tensorboard", "torch"}),
    "config": (set(), {"hydra", "omegaconf", "yaml"}),
    "sweep": (
        {"config", "data", "training", "loggers", "resume", "launch"},
        {"hydra", "omegaconf", "optuna", "sqlalchemy", "rich", "torch"},
    ),
    "study": (
        {"config", "data", "training", "models", "nn", "optim", "inference", "loggers", "sweep"}
        | {"assemble", "launch", "loading", "planning", "resume"},
        {"hydra", "omegaconf", "numpy", "rich", "scipy", "statsmodels", "torch", "yaml"},
    ),
    "probes": ({"nn", "training"}, {"numpy", "rich", "statsmodels", "torch"}),
    "report": ({"study", "loggers"}, {"matplotlib", "jinja2", "rich", "wandb"}),
}
SCRIPTS = tomllib.loads((sources.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
ENTRY_POINTS = [target.partition(":")[0] for target in SCRIPTS.values()]
ONLY_WHEN_USED = {
    "wandb",
    "tensorboard",
    "bitsandbytes",
    "transformers",
    "datasets",
    "matplotlib",
    "tiktoken",
    "optuna",
    "scipy",
    "statsmodels",
    "jinja2",
}
BY_ITSELF = (
    "wandb",
    "tensorboard",
    "transformers",
    "datasets",
    "matplotlib",
    "bitsandbytes",
    "torch",
    "hydra",
    "omegaconf",
    "rich",
)


def wrong_imports(layer: str, module: ast.Module) -> list[str]:
    """The imports of a file that its layer may not have."""
    own, libraries = LAYERS[layer]
    wrong = []
    for one in sources.imports(module):
        top, *rest = one.module.split(".")
        if top == "tinyllm":
            allowed = not rest or rest[0] in own | {layer, "errors", "utils", "__version__"}
        else:
            allowed = top in sys.stdlib_module_names or top in libraries
        if not allowed:
            wrong.append(f"line {one.line}: {one.module}")
    return wrong


def late_imports(module: ast.Module) -> list[str]:
    """Imports at the top of a file of what may only be loaded where it is used."""
    return [one.module for one in sources.imports(module) if one.at_top and one.module.split(".")[0] in ONLY_WHEN_USED]


def test_every_folder_has_its_place() -> None:
    folders = {path.parent.name for path in sources.PACKAGE.glob("*/__init__.py")}
    assert folders <= LAYERS.keys(), "a new layer: say in LAYERS what it may import"


@pytest.mark.parametrize("path", sources.files(), ids=sources.relative)
def test_imports_run_one_way(path: Path) -> None:
    layer = path.relative_to(sources.PACKAGE).parts[0]
    if layer in LAYERS:
        assert wrong_imports(layer, sources.tree(path)) == []
    assert late_imports(sources.tree(path)) == []


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_is_imported_without_torch(name: str) -> None:
    path = sources.ROOT / f"{name.replace('.', '/')}.py"
    top = {one.module.split(".")[0] for one in sources.imports(sources.tree(path)) if one.at_top}
    assert "torch" not in top


def test_a_name_for_type_checkers_or_inside_a_function_is_told_apart() -> None:
    module = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import matplotlib\n"
        "try:\n    import tiktoken\nexcept ImportError:\n    pass\n"
        "def draw():\n    import matplotlib.figure\n    from tinyllm.models.block import Block\n"
    )
    assert late_imports(module) == ["tiktoken"]
    assert wrong_imports("nn", module) == [
        "line 5: tiktoken",
        "line 9: matplotlib.figure",
        "line 10: tinyllm.models.block.Block",
    ]


def loaded_after(code: str) -> set[str]:
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sorted(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(shown.stdout.split())


def test_tinyllm_alone_loads_nothing_heavy() -> None:
    assert loaded_after("import tinyllm") & set(BY_ITSELF) == set()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_module_is_light(name: str) -> None:
    loaded = loaded_after(f"import {name}")
    assert loaded & {"torch", "numpy", "matplotlib", "transformers", "tokenizers", "wandb"} == set()


def test_optional_libraries_are_loaded_only_when_used() -> None:
    shown = ", ".join(f"tinyllm.loggers.{name}" for name in ("console", "curves", "wandb", "tensorboard"))
    modules = "tinyllm.models.transformer, tinyllm.tokenizers, tinyllm.data, tinyllm.training.trainer"
    loaded = loaded_after(f"import {modules}, {shown}")
    assert loaded & {"matplotlib", "transformers", "tokenizers", "tiktoken", "wandb", "tensorboard", "hydra"} == set()
