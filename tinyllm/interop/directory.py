"""A directory as transformers writes it: config.json, the weights in safetensors files, the tokenizer."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tinyllm.errors import UserError
from tinyllm.interop.families import family_of
from tinyllm.interop.family import Family, refused
from tinyllm.interop.kinds import HARMLESS
from tinyllm.runs.tensor_files import INDEX, MODEL, Tensors
from tinyllm.utils.files import check_utf8, create, read_json, remove, set_mode, sync, temporary, translated

CONFIG, GENERATION = "config.json", "generation_config.json"
READABLE = {"F32", "BF16", "F16"}
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
HEAD = "lm_head.weight"
PREFIXES = ("transformer.", "model.")
"""What files of the model without its head leave out before every name."""


def is_model(path: str | Path) -> bool:
    """Whether a directory is one of transformers' (a run has its checkpoints, a checkpoint its manifest)."""
    return (Path(path) / CONFIG).is_file() and not (Path(path) / "manifest.json").exists()


class Directory:
    """A model of transformers on the disk.

    Args:
        path: the directory.

    Attributes:
        config: config.json.
        family: its family.
        entries: what the family reads of config.json, with its defaults.
        arch: what the model is.

    Raises:
        UserError: it is none, or one that cannot be expressed; the line names the entry.
    """

    family: Family

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError("no such directory", key="path", value=path, hint="one with config.json and safetensors")
        self.config = _read(self.path / CONFIG)
        try:
            self.family = family_of(self.config)
            self.entries = self.family.checked(self.config)
            self.arch = self.family.read(self.config)
        except UserError as error:
            raise _in_file(error, self.path / CONFIG) from error

    def special(self) -> dict[str, Any]:
        """``bos_token_id``, ``eos_token_id`` and ``pad_token_id``, those for generation before the model's."""
        found = dict(self.config)
        if (self.path / GENERATION).is_file():
            given = {key: value for key, value in _read(self.path / GENERATION).items() if value is not None}
            for name in SPECIAL:
                if not HARMLESS[name].fits(given.get(name)):
                    raise _in_file(refused(name, given[name], HARMLESS[name].words), self.path / GENERATION)
            found |= given
        return {name: found.get(name) for name in SPECIAL}

    def weights(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors, of the values and the dtype that the files have.

        Args:
            wanted: our tensors by name, for their shapes; on the meta device.

        Raises:
            UserError: a tensor is missing, has another shape or is of no use, or a file is damaged.
        """
        files = Files(self.path)
        table = self.family.weights(self.arch, self.entries)
        assert {one.ours for one in table} == wanted.keys()
        names = {one.ours: [files.resolve(name) for name in one.theirs] for one in table}
        for one in table:
            shapes = [tuple(part.shape) for part in one.layout.split(wanted[one.ours])]
            for name, shape in zip(names[one.ours], shapes, strict=True):
                files.check(name, shape)
        used = {name for several in names.values() for name in several}
        unused = [name for name in files.names() if name not in used and not self.family.ignored(name, self.entries)]
        found = {one.ours: one.layout.join([files.read(name) for name in names[one.ours]]) for one in table}
        for name in unused:
            if name == HEAD and torch.equal(files.read(name), found["embedding.weight"]):
                continue  # written although it is tied
            hint = f"{name} is there, and this {self.family.title} has no place for it"
            raise UserError("the weights are not of this architecture", file=files.file_of[name], hint=hint)
        return found


class Files(Tensors):
    """The tensors of a directory of transformers.

    Raises:
        UserError: a file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            super().__init__(path, whole_first=True)
        except UserError as error:
            others = sorted(one.name for one in path.glob("*.bin"))
            if error.what != "no weights" or not others:
                raise
            hint = f"{error.hint}; {others[0]} is not read, since loading it can run code; transformers reads it, and "
            hint += "AutoModelForCausalLM.from_pretrained(directory).save_pretrained(new) writes safetensors"
            raise UserError(error.what, file=error.file, hint=hint) from error

    def resolve(self, name: str) -> str:
        """The name under which a tensor is there.

        Raises:
            UserError: it is not.
        """
        short = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
        for one in (name, short):
            if one in self.unlisted:
                hint = f"it does not list {one}, which is in {self.file_of[one].name}; transformers would load it, "
                raise UserError("damaged index", file=self.path / INDEX, hint=f"{hint}and save_pretrained lists it")
            if one in self.file_of:
                return one
        hint = f"{name} is missing"
        if name == HEAD:
            hint += ": transformers would draw it anew; if the head is the embedding, config.json must say "
            hint += "tie_word_embeddings: true"
        raise UserError("the weights are not of this architecture", file=self.path, hint=hint)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a tensor of another shape, or of a dtype that has no values of its own."""
        there, dtype = self.shape(name), self.part(name).get_dtype()
        if there != shape:
            hint = f"{name} is {there} there, config.json asks for {shape}"
            raise UserError("the weights are not of this architecture", file=self.file_of[name], hint=hint)
        if dtype not in READABLE:
            hint = f"{name} is {dtype}; read are {', '.join(sorted(READABLE))}"
            what = "weights in double precision" if dtype == "F64" else "quantized weights"
            raise UserError(what, file=self.file_of[name], hint=hint)


def check_out(out: str | Path | None, *, command: str) -> Path:
    """Where a directory is to be written.

    Raises:
        UserError: it was not given, exists, or its place is not there.
    """
    if not out:
        raise UserError("where to?", key="out", value=out, hint=f"{command} out=<new directory>")
    path = Path(out)
    check_utf8(path, key="out")
    if path.exists():
        raise UserError("it exists already", key="out", value=out, hint="choose another directory")
    parent = next(one for one in path.absolute().parents if one.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError("no directory can be made there", key="out", value=out, hint=f"{parent} cannot be written")
    return path


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """A new directory under a temporary name, which gets its own name when the block ends well.

    Raises:
        UserError: the disk is full or cannot be written; nothing is left.
    """
    folder = temporary(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    try:
        with translated(out):
            yield folder
            mode = 0o666 & ~_umask()
            for file in folder.rglob("*"):
                if file.is_file():
                    set_mode(file, mode)  # safetensors writes for the owner alone
                    sync(file)
            os.rename(folder, out)
            sync(out.parent)
    finally:
        remove(folder)


def main_dtype(weights: Mapping[str, Tensor]) -> str:
    """The dtype of most of the tensors, as config.json names it."""
    dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()]
    return max(dtypes, key=dtypes.count)


def write(
    out: Path,
    *,
    config: Mapping[str, Any],
    special: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    texts: Mapping[str, str],
) -> str:
    """Write a directory that ``from_pretrained`` reads; it is there whole or not at all. Returns the dtype.

    Args:
        special: ids for config.json and generation_config.json.
        weights: tensors by transformers' names.
        texts: further files by name.
    """
    dtype = main_dtype(weights)
    contents = dict(config) | dict(special) | {"dtype": dtype, "use_cache": True}
    with building(out) as folder:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / MODEL, {"format": "pt"})
        generation = {name: value for name, value in special.items() if value is not None}
        for name, content in ((CONFIG, contents), (GENERATION, {"_from_model_config": True, **generation})):
            with create(folder / name) as stream:
                stream.write((json.dumps(content, indent=2) + "\n").encode())
        for name, text in texts.items():
            with create(folder / name) as stream:
                stream.write(text.encode())
    return dtype


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(file, what="cannot be read")
    return content


def _umask() -> int:
    """What the process takes away from the rights of new files; to be asked it must be set."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _in_file(error: UserError, file: Path) -> UserError:
    return UserError(error.what, key=error.key, value=error.value, file=file, hint=error.hint)
