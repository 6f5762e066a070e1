"""Imports run down the house, and what is heavy is loaded only by what uses it."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support import sources
from tinyllm.config.targets import work_named

# The rooms from the top of the house to its bottom, and the libraries each may use. A file may import from its own room
# and from the rooms further down; rooms of one floor do not know each other.
FLOORS: list[dict[str, set[str]]] = [
    {"studio": {"nicegui", "numpy", "fastapi", "starlette", "uvicorn", "torch", "yaml"}},
    {
        "studies": {
            "hydra",
            "omegaconf",
            "numpy",
            "rich",
            "scipy",
            "statsmodels",
            "torch",
            "yaml",
            "optuna",
            "sqlalchemy",
        }
        | {"matplotlib", "jinja2", "wandb"}
    },
    {
        "programs": {"hydra", "omegaconf", "numpy", "rich", "torch", "yaml"}
        | {"fastapi", "pydantic", "starlette", "uvicorn"}
    },
    {"loggers": {"rich", "matplotlib", "wandb", "tensorboard", "torch"}, "interop": {"torch", "safetensors"}},
    {"training": {"torch", "numpy", "safetensors"}, "inference": {"torch", "numpy"}},
    {"runs": {"torch", "numpy", "safetensors", "yaml"}, "data": {"torch", "numpy", "jinja2"}},
    {
        "models": {"torch"},
        "optim": {"torch", "numpy", "bitsandbytes"},
        "tokenizers": {"numpy", "tokenizers", "tiktoken"},
    }
    | {"config": {"hydra", "omegaconf", "yaml"}},
    {"nn": {"torch"}},
    {"utils": {"numpy", "torch", "rich", "yaml"}},
]
LIBRARIES = {room: libraries for floor in FLOORS for room, libraries in floor.items()}
BELOW = {
    room: {lower for floor in FLOORS[depth + 1 :] for lower in floor}
    for depth, floor in enumerate(FLOORS)
    for room in floor
}
SCRIPTS = tomllib.loads((sources.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
ENTRY_POINTS = [target.partition(":")[0] for target in SCRIPTS.values()]
IMPORTED_BY = {
    "wandb": ("loggers/wandb_process.py",),
    "tensorboard": (),
    "bitsandbytes": (),
    "transformers": (),
    "datasets": (),
    "pyarrow": (),
    "zstandard": (),
    "huggingface_hub": (),
    "tiktoken": (),
    "matplotlib": ("studies/",),
    "optuna": ("studies/sweep/",),
    "scipy": ("studies/",),
    "statsmodels": ("studies/",),
    "jinja2": ("studies/", "data/chat/engine.py"),
    "fastapi": ("programs/serve/", "studio/"),
    "pydantic": ("programs/serve/",),
    "nicegui": ("studio/",),
    "starlette": ("programs/serve/", "studio/"),
    "uvicorn": ("programs/serve/", "studio/"),
}
"""Heavy or optional libraries, and the files and folders that may import them at the top: those that only their users
import."""
BY_ITSELF = (
    "wandb",
    "tensorboard",
    "transformers",
    "datasets",
    "pyarrow",
    "matplotlib",
    "bitsandbytes",
    "torch",
    "hydra",
    "omegaconf",
    "rich",
    "fastapi",
    "uvicorn",
    "nicegui",
)


def wrong_imports(room: str, module: ast.Module) -> list[str]:
    """The imports of a file that its room may not have."""
    wrong = []
    for one in sources.imports(module):
        top, *rest = one.module.split(".")
        if top == "tinyllm":
            allowed = not rest or rest[0] in BELOW[room] | {room, "errors", "__version__"}
        else:
            allowed = top in sys.stdlib_module_names or top in LIBRARIES[room]
        if not allowed:
            wrong.append(f"line {one.line}: {one.module}")
    return wrong


def late_imports(module: ast.Module, file: str) -> list[str]:
    """Heavy libraries that ``file`` imports at the top although files without a use for them import it."""
    return [
        one.module
        for one in sources.imports(module)
        if one.at_top and not file.startswith(IMPORTED_BY.get(one.module.split(".")[0], ("",)))
    ]


def test_every_folder_is_a_room() -> None:
    folders = {path.parent.name for path in sources.PACKAGE.glob("*/__init__.py")}
    assert folders == set(LIBRARIES), "a new room: say in FLOORS on which floor it is and what it may import"


@pytest.mark.parametrize("path", sources.files(), ids=sources.relative)
def test_imports_run_down(path: Path) -> None:
    room, *rest = path.relative_to(sources.PACKAGE).parts
    if room in LIBRARIES and rest != ["__main__.py"]:  # that one is the command `python -m tinyllm.runs`
        assert wrong_imports(room, sources.tree(path)) == []
    assert late_imports(sources.tree(path), path.relative_to(sources.PACKAGE).as_posix()) == []


def test_imports_stand_at_the_top() -> None:
    """Only ``import tinyllm`` and the Hydra plugin, which Hydra loads at every start, import when they are used."""
    staged = {sources.PACKAGE / "__init__.py", *(sources.PACKAGE / "plugins").rglob("*.py")}
    inside = [
        f"{sources.relative(path)}:{statement.lineno}"
        for path in sources.files()
        if path not in staged
        for function in ast.walk(sources.tree(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for statement in ast.walk(function)
        if isinstance(statement, ast.Import | ast.ImportFrom)
    ]
    assert inside == [], "put what needs a heavy library into a file that only its users import"


def test_no_circle() -> None:
    """At import time no file of the package needs itself, by whatever way."""
    names = {sources.module(path): path for path in sources.files()}
    needed = {
        name: {
            one.module if one.module in names else one.module.rpartition(".")[0]
            for one in sources.imports(sources.tree(path))
            if one.at_top and one.module.startswith("tinyllm.")
        }
        for name, path in names.items()
    }
    TopologicalSorter(needed).prepare()


def test_the_top_holds_commands_and_nothing_else() -> None:
    # A folder and a file of one name cannot stand side by side: the commands `runs` and `studio` are the __main__ of
    # their rooms.
    files = [path for path in sources.PACKAGE.glob("*.py") if path.stem not in ("__init__", "errors")]
    files += [sources.PACKAGE / room / "__main__.py" for room in ("runs", "studio")]
    commands = {script.removeprefix("tinyllm-").replace("-", "_") for script in SCRIPTS} | {"reference"}
    assert {path.parent.name if path.stem == "__main__" else path.stem for path in files} == commands
    for path in files:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 20, path
        imported = [one.module for one in sources.imports(sources.tree(path)) if one.module.startswith("tinyllm.")]
        rooms = {module.split(".")[1] for module in imported}
        assert rooms <= {"programs", "studies", "studio", "config", "utils"}, "no command imports a command"


COMMANDS = "\n".join(path.read_text(encoding="utf-8") for path in sorted(sources.PACKAGE.glob("*.py")))


@pytest.mark.parametrize("name", sorted(set(re.findall(r'"(tinyllm[\w.]+:\w+)"', COMMANDS))))
def test_the_work_that_a_command_names_is_there(name: str) -> None:
    assert callable(work_named(name))


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
    assert late_imports(module, "nn/attention.py") == ["tiktoken"]
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


def test_entry_modules_are_light() -> None:
    loaded = loaded_after(f"import {', '.join(ENTRY_POINTS)}")
    heavy = {"torch", "numpy", "matplotlib", "transformers", "tokenizers", "wandb"}
    assert loaded & (heavy | {"fastapi", "uvicorn", "starlette", "nicegui"}) == set()


@pytest.mark.slow
def test_optional_libraries_are_loaded_only_when_used() -> None:
    shown = ", ".join(f"tinyllm.loggers.{name}" for name in ("console", "wandb", "tensorboard"))
    modules = "tinyllm.models.transformer, tinyllm.tokenizers, tinyllm.data, tinyllm.training.trainer"
    loaded = loaded_after(f"import {modules}, {shown}")
    assert loaded & {"matplotlib", "transformers", "tiktoken", "wandb", "tensorboard", "hydra"} == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", [*(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("adamw", "lion")), "muon"]
)
def test_a_run_that_compiles_nothing_does_not_load_the_compiler(optimizer: str, tmp_path: Path) -> None:
    """torch loads its compiler, which takes a second, at the first call of several methods that do not need it."""
    settings = ["model=pico", f"optimizer={optimizer}", "trainer.max_steps=2", "trainer.batch_size=2"]
    code = (
        f"import sys; sys.argv[1:] = {[*settings, f'run.dir={tmp_path}/run']}; from tinyllm.train import main; main()"
    )
    assert loaded_after(code) & {"torch._dynamo", "torch._inductor", "sympy"} == set()
