"""Rules about the source text: no foreign code is run, no mistake is hidden, nothing is left unfinished."""

import ast
import re
from collections.abc import Callable, Iterator

import pytest

from tests.support import sources

Rule = Callable[[ast.AST], bool]
LONGEST_FILE = 400


def _call(node: ast.AST) -> str:
    """The dotted name that is called, or nothing."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def _keyword(node: ast.AST, name: str, *values: object) -> bool:
    """Whether a call passes one of the literal ``values`` as ``name``."""
    return isinstance(node, ast.Call) and any(
        keyword.arg == name and isinstance(keyword.value, ast.Constant) and keyword.value.value in values
        for keyword in node.keywords
    )


def _imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {name.name.split(".")[0] for name in node.names}
    return {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and node.module else set()


def _is_variant_switch(node: ast.AST) -> bool:
    """``if attn == "mha"``: a choice is a class picked by ``_target_``, never a comparison with its name."""
    return (
        isinstance(node, ast.Compare)
        and re.search(
            r"(^|[._])(attn|attention|ffn|moe|norm|pos|optimizer|schedule|tokenizer)$", ast.unparse(node.left)
        )
        is not None
        and any(isinstance(constant, ast.Constant) and isinstance(constant.value, str) for constant in ast.walk(node))
    )


WRITERS = ("np.save", "np.savez", "np.savez_compressed", "torch.save", "savefig")
"""Functions of libraries that write; they may into a stream that we have opened."""


def _writes_in_place(node: ast.AST) -> bool:
    """A file opened for writing, or a library told a path to write to, other than by tinyllm.utils.files."""
    if not isinstance(node, ast.Call):
        return False
    name, method = _call(node), _call(node).rpartition(".")[2]
    first = ast.unparse(node.args[0]) if node.args else ""
    if name.startswith("shutil.copy") or (isinstance(node.func, ast.Attribute) and method in ("touch", "chmod")):
        return True
    if method in ("write_text", "write_bytes"):
        return "." in name and not name.startswith("files.")
    if name == "os.open":
        return first != "os.devnull"
    if method == "open":
        modes = [*node.args, *(one.value for one in node.keywords if one.arg == "mode")]
        texts = [one.value for one in modes if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        return any(re.fullmatch(r"[rbt]*[wa+][rwabt+]*", text) for text in texts)
    if name in WRITERS or method == "savefig":
        targets = [ast.unparse(one) for one in node.args]
        return not any(one in ("stream", "buffer", "packed") for one in targets)
    return False


BELOW_THE_RULES = {
    "json and yaml are read within bounds": ("tinyllm/utils/files.py", "tinyllm/utils/yaml_files.py"),
    "files are written whole, and through no link": (
        *("tinyllm/utils/files.py", "tinyllm/utils/locks.py"),
        "tinyllm/training/distributed/shared_memory.py",  # anonymous memory of the other ranks, and no file
    ),
}
"""The files that do for all others what a rule forbids them."""

RULES: dict[str, tuple[Rule, list[str], list[str]]] = {
    "torch.load has weights_only=True as a literal": (
        lambda node: _call(node) in ("torch.load", "load_torch") and not _keyword(node, "weights_only", True),
        ["torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=safe)"],
        ["torch.load(path, weights_only=True)"],
    ),
    "no pickle": (
        lambda node: bool(_imported(node) & {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}),
        ["import pickle", "from pickle import loads"],
        ["import json"],
    ),
    "no pickled arrays": (
        lambda node: _keyword(node, "allow_pickle", True),
        ["np.load(path, allow_pickle=True)"],
        ["np.load(path, allow_pickle=False)"],
    ),
    "no eval, exec or compile of text": (
        lambda node: _call(node) in ("eval", "exec", "compile", "__import__"),
        ["eval('1')", "exec(text)", "__import__(name)"],
        ["model.eval()", "re.compile(text)", "torch.compile(model)"],
    ),
    "no shell": (
        lambda node: _keyword(node, "shell", True) or _call(node) in ("os.system", "os.popen"),
        ["subprocess.run(line, shell=True)", "os.system(line)", "os.popen(line)"],
        ["subprocess.run([line])"],
    ),
    "no yaml.load": (
        lambda node: re.fullmatch(r"yaml\.(load|load_all|full_load|unsafe_load)", _call(node)) is not None,
        ["yaml.load(text)", "yaml.unsafe_load(text)"],
        ["yaml.compose(text, Loader=yaml.SafeLoader)", "OmegaConf.load(path)"],
    ),
    "json and yaml are read within bounds": (
        lambda node: (
            re.fullmatch(r"json\.loads?|yaml\.\w*(load|compose|parse|scan)\w*|OmegaConf\.load", _call(node)) is not None
        ),
        ["json.loads(text)", "json.load(file)", "yaml.safe_load(text)", "yaml.compose(text)", "OmegaConf.load(path)"],
        ["json.dumps(facts)", "read_json(path)", "yaml.MappingNode()", "OmegaConf.create(read_yaml(path))"],
    ),
    "files are written whole, and through no link": (
        _writes_in_place,
        [
            *("path.write_text(text)", "Path(name).write_bytes(content)", "path.touch()", "path.chmod(mode)"),
            *("open(path, 'w')", "path.open('ab')", "gzip.open(path, mode='wb')", "os.open(path, os.O_WRONLY)"),
            *("np.savez(path, **arrays)", "figure.savefig(path)", "torch.save(state, path)", "shutil.copy(a, b)"),
        ],
        [
            *("write_text(path, text)", "files.write_json(path, facts)", "path.open('rb')", "open(path)"),
            *("open(path, 'xb')", "os.open(os.devnull, os.O_WRONLY)", "figure.savefig(stream)"),
            *("torch.save(state, stream)", "np.savez(stream, **arrays)", "image.open(hashes)"),
        ],
    ),
    "no strict=False": (
        lambda node: _keyword(node, "strict", False) and "zip" not in _call(node),
        ["model.load_state_dict(state, strict=False)"],
        ["model.load_state_dict(state)", "zip(a, b, strict=False)"],
    ),
    "nothing left to be written": (
        lambda node: isinstance(node, ast.Name) and node.id == "NotImplementedError",
        ["raise NotImplementedError"],
        ["return NotImplemented"],
    ),
    "no bare except": (
        lambda node: isinstance(node, ast.ExceptHandler) and node.type is None,
        ["try:\n    a()\nexcept:\n    pass"],
        ["try:\n    a()\nexcept OSError:\n    pass"],
    ),
    "a choice is composed, not switched on its name": (
        _is_variant_switch,
        ["if attn == 'mha': pass", "kind = 1 if cfg.optimizer in ('adamw', 'lion') else 2"],
        ["if attn is None: pass", "if device == 'cpu': pass"],
    ),
}
"""Rule -> (what breaks it, code that does, code that does not)."""

ONLY_IN = {
    "instantiate": (set(), "hydra.utils.instantiate calls what it is given; tinyllm.config.build checks it"),
    "hydra.main": ({"tinyllm/config/cli/main.py"}, "hydra.main has one caller"),
}


def breaking(rule: Rule, module: ast.Module) -> Iterator[int]:
    """The lines of a file that break a rule."""
    for node in ast.walk(module):
        if rule(node):
            yield getattr(node, "lineno", 0)


@pytest.mark.parametrize("name", RULES)
def test_the_package_keeps_the_rule(name: str) -> None:
    rule = RULES[name][0]
    found = [
        f"{sources.relative(path)}:{line}"
        for path in sources.files()
        if sources.relative(path) not in BELOW_THE_RULES.get(name, ())
        for line in breaking(rule, sources.tree(path))
    ]
    assert found == []


@pytest.mark.parametrize("name", RULES)
def test_the_rule_finds_what_it_is_for(name: str) -> None:
    rule, bad, good = RULES[name]
    assert [code for code in bad if not list(breaking(rule, ast.parse(code)))] == []
    assert [code for code in good if list(breaking(rule, ast.parse(code)))] == []


@pytest.mark.parametrize("called", ONLY_IN)
def test_called_in_one_place_only(called: str) -> None:
    allowed, why = ONLY_IN[called]
    callers = {
        sources.relative(path)
        for path in sources.files()
        for node in ast.walk(sources.tree(path))
        if _call(node) == called or _call(node).endswith(f".{called}")
    }
    assert callers <= allowed, why


def test_hydra_stays_in_what_composes() -> None:
    users = [
        sources.relative(path)
        for path in sources.files()
        if any(one.module.split(".")[0] in ("hydra", "omegaconf") for one in sources.imports(sources.tree(path)))
    ]
    allowed = ("tinyllm/config/", "tinyllm/programs/", "tinyllm/studies/", "tinyllm/plugins/")
    assert [path for path in users if path.count("/") > 1 and not path.startswith(allowed)] == []


def test_no_file_is_too_long_to_read() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources.tracked(".py", ".yaml")}
    assert {sources.relative(path): length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_nothing_is_left_over() -> None:
    marks = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "pragma: no " + "cover")))
    found = [
        f"{sources.relative(path)}:{number}"
        for path in sources.tracked(".py", ".yaml", ".toml", ".md")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line)
    ]
    assert found == []


def test_no_path_of_one_machine_is_in_the_repository() -> None:
    places = re.compile(
        r"(^|[^A-Za-z0-9_.])/(" + "|".join(("wo" + "rk", "fa" + "rm", "ro" + "ot", "opt/whe" + "els")) + r")/"
    )
    found = []
    for path in sources.tracked():
        text = path.read_bytes().decode("utf-8", "ignore")
        found += [sources.relative(path) for line in text.splitlines() if places.search(line)]
    assert found == []
