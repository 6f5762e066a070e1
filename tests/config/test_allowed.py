"""Which classes may stand where: of all in the package, only those that an option file names for the node."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import tinyllm
from tests.support import sources
from tinyllm.config.build import build
from tinyllm.config.targets import Option, builtin_options, check_class, check_classes, options_of
from tinyllm.errors import UserError

MIXED = (
    *("attn=mla", "moe=aux_free", "logger=wandb", "strategy=ddp", "parametrization=mup", "optimizer=muon"),
    *("layers=pattern", 'model.layers.kinds={a:"attn=mqa ffn=swiglu",b:""}', "model.layers.pattern=[a,b]"),
)


def everything() -> list[str]:
    """Every function and class of the package, found without importing it."""
    found = []
    for file in sources.files():
        module = ".".join(file.relative_to(sources.ROOT).with_suffix("").parts).removesuffix(".__init__")
        names = re.findall(r"^(?:async def|def|class) (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        found += [f"{module}.{name}" for name in names]
    return found


EVERYTHING = everything()


def plain(*overrides: str) -> Any:
    return OmegaConf.to_container(tinyllm.compose(*overrides), resolve=True)


def nodes(node: Any, path: str = "") -> dict[str, Any]:
    """Every key of a configuration with its value, including inner nodes."""
    found = {}
    for name, child in node.items():
        where = f"{path}.{name}" if path else name
        found[where] = child
        if isinstance(child, dict):
            found |= nodes(child, where)
    return found


def no_import(name: str) -> None:
    """A refused class is not even imported."""
    raise AssertionError(f"{name} was imported")


def test_only_classes_that_an_option_file_names_for_the_node_are_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everywhere = nodes(plain(*MIXED))
    monkeypatch.setattr(importlib, "import_module", no_import)
    assert len(EVERYTHING) > 1000 and len(everywhere) > 150
    for number, (path, value) in enumerate(everywhere.items()):
        place = re.sub(r"^model\.layers\.kinds\.\w+", "model.block", path)
        options = {option.target: option.call_flags for option in builtin_options().get(place, ())}
        if isinstance(value, dict) and "_target_" in value:
            assert value["_target_"] in options
        for target in EVERYTHING if options else EVERYTHING[number % 40 :: 40]:
            forged = {"_target_": target} | ({"_partial_": True} if "_partial_" in str(options) else {})
            if target in options:
                check_class(forged, path, frozenset())
                continue
            try:
                check_class(forged, path, frozenset())
            except UserError as refused:
                assert (refused.key, refused.value) == (f"{path}._target_", target)
            else:
                raise AssertionError(f"{path} takes {target}")


def test_no_class_is_allowed_in_place_of_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", no_import)
    model = {"_target_": "tinyllm.models.transformer.Transformer", "d_model": 8}
    for target in EVERYTHING:
        for forged in ({"dropout": {"_target_": target}}, {"block": [{"x": {"_target_": target}}]}):
            with pytest.raises(UserError, match=rf"^class not allowed \(model\..*_target_={re.escape(target)}\)"):
                build(model | forged, path="model")


@pytest.mark.parametrize(
    "marks", [{"_args_": [1]}, {"_convert_": "none"}, {"_recursive_": False}, {"_partial_": False}]
)
def test_only_option_files_say_how_a_class_is_called(marks: dict[str, Any]) -> None:
    node = {"_target_": "tinyllm.nn.norm.RMSNorm", "_partial_": True, "eps": 1e-5}
    build(node, path="model.norm")
    with pytest.raises(UserError, match=rf"not allowed here \(model.norm.{next(iter(marks))}="):
        build(node | marks, path="model.norm")


@pytest.mark.parametrize(
    "name",
    ["block.attn", "block[0]", 7, None, "block\nattn", "model.norm"],
    ids=["dot", "index", "7", "null", "line", "own"],
)
def test_a_key_that_spells_the_path_of_another_node_is_refused(name: Any) -> None:
    node = {"_target_": "tinyllm.nn.attention.mha.MHA", "_partial_": True}
    check_classes({"model": {"block": {"attn": node}}})
    with pytest.raises(UserError, match="class not allowed"):
        check_classes({"model": {name: node}})


def test_classes_of_the_users_option_files_belong_to_their_nodes(tmp_path: Path) -> None:
    files = {
        "attn/mine.yaml": "# @package model.block.attn\n_target_: mine.A\n_partial_: true\n",
        "optimizer/mine.yaml": "_target_: mine.O\n",
        "layers/deep/mine.yaml": "_target_: mine.L\n",
        "experiment/mine.yaml": "# @package _global_\nlogger:\n  _target_: mine.G\n",
        "mine/a.yaml": "# @package _group_._name_\n_target_: mine.N\n",
        "model/two.yaml": "# @package model\nnorms:\n  - {_target_: mine.M, _args_: [1]}\n",
        "attn/broken.yaml": "_target_: [",
        "attn/latin.yaml": b"# \xff\n_target_: mine.B",
        ".hidden/attn/mine.yaml": "_target_: mine.H\n",
        "attn/none.yaml": "n_heads: 3\n",
    }
    for name, content in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "attn" / "folder.yaml").mkdir()
    assert options_of(tmp_path) == {
        Option(node="model.block.attn", target="mine.A", call_flags='{"_partial_": true}'),
        Option(node="optimizer", target="mine.O", call_flags="{}"),
        Option(node="layers.deep", target="mine.L", call_flags="{}"),
        Option(node="logger", target="mine.G", call_flags="{}"),
        Option(node="mine.a", target="mine.N", call_flags="{}"),
        Option(node="model.norms[0]", target="mine.M", call_flags='{"_args_": [1]}'),
    }
    own = options_of(tmp_path)
    check_class({"_target_": "mine.A", "_partial_": True}, "model.layers.kinds.far.attn", own)
    for path in ("model.block.ffn", "model.norm", "model", "attn", "model.block.attn.window"):
        with pytest.raises(UserError, match="class not allowed"):
            check_class({"_target_": "mine.A", "_partial_": True}, path, own)


@pytest.mark.parametrize("text", ["d/${x}.txt", "${oc.env:HOME}", "${", r"\${a}", "${a:${b}}", "???x", "a\\"])
def test_text_that_looks_like_an_interpolation_is_not_resolved(text: str) -> None:
    corpus = build({"_target_": "tinyllm.data.text.TextCorpus"} | plain("dataset=text", "dataset.path=x")["dataset"]
                   | {"path": text}, path="dataset")  # fmt: skip
    assert text in str(vars(corpus))


def test_any_exception_of_a_constructor_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError("needs 512 GB")

    monkeypatch.setattr("tinyllm.data.stdlib.StdlibCorpus", broken)
    with pytest.raises(UserError, match=r"cannot build this component \(dataset\): RuntimeError: needs 512 GB"):
        build({"_target_": "tinyllm.data.stdlib.StdlibCorpus"}, path="dataset")
