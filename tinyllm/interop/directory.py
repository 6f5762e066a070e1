"""Model directories in Hugging Face format: config.json, weights in safetensors files, tokenizer files."""

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
from tinyllm.interop.entry_types import HARMLESS
from tinyllm.interop.families import family_of, is_reward_model
from tinyllm.interop.family import Family, refused
from tinyllm.interop.layouts import Weight
from tinyllm.models.score_head import SCORE
from tinyllm.runs.tensor_files import INDEX, MODEL, Tensors
from tinyllm.utils.files import check_utf8, create, read_json, remove, set_mode, sync, temporary
from tinyllm.utils.write_errors import readable_write_errors

CONFIG, GENERATION = "config.json", "generation_config.json"
READABLE = {"F32", "BF16", "F16"}
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
HEAD = "lm_head.weight"
PREFIXES = ("transformer.", "model.")
"""Prefixes of tensor names that files of a model without a head leave out."""


def is_model(path: str | Path) -> bool:
    """Whether a directory is a Hugging Face model; a run's checkpoint has a manifest next to its config."""
    return (Path(path) / CONFIG).is_file() and not (Path(path) / "manifest.json").exists()


class ModelDirectory:
    """A Hugging Face model on disk. The weights are read on request.

    Args:
        path: the directory.

    Attributes:
        config: the content of config.json.
        family: the model's family.
        entries: the entries of config.json that the family reads, with defaults filled in.
        arch: the architecture.
        scores_answers: it is a reward model, with a score head in place of that over the vocabulary.

    Raises:
        UserError: it is not a model directory, or tinyllm cannot express the model; the message names the entry.
    """

    family: Family

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            hint = "give a directory with config.json and safetensors files"
            raise UserError("no such directory", key="path", value=path, hint=hint)
        self.config = _read(self.path / CONFIG)
        try:
            self.family = family_of(self.config)
            self.entries = self.family.checked(self.config)
            self.arch = self.family.read(self.config)
            self.scores_answers = is_reward_model(self.config)
        except UserError as error:
            raise _in_file(error, self.path / CONFIG) from error
        if self.scores_answers:  # which has no head over the vocabulary to tie
            self.arch.model["model.tie_embeddings"] = True

    def special(self) -> dict[str, Any]:
        """The ids of special tokens: those of generation_config.json, else those of config.json."""
        entries = dict(self.config)
        if (self.path / GENERATION).is_file():
            generation = {key: value for key, value in _read(self.path / GENERATION).items() if value is not None}
            for name in SPECIAL:
                if not HARMLESS[name].fits(generation.get(name)):
                    raise _in_file(refused(name, generation[name], HARMLESS[name].words), self.path / GENERATION)
            entries |= generation
        return {name: entries.get(name) for name in SPECIAL}

    def weights(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors by their names in tinyllm, with the values and dtypes of the files.

        Args:
            wanted: the model's state dict, for the shapes; on the meta device.

        Raises:
            UserError: a tensor is missing, unexpected or of the wrong shape, or a file is damaged.
        """
        files = Files(self.path)
        table = self.family.weights(self.arch, self.entries)
        table += [Weight(SCORE, (SCORE,))] if self.scores_answers else []
        assert {weight.name for weight in table} == wanted.keys()
        names = {weight.name: [files.resolve(name) for name in weight.hf_names] for weight in table}
        for weight in table:
            shapes = [tuple(part.shape) for part in weight.layout.split(wanted[weight.name])]
            for name, shape in zip(names[weight.name], shapes, strict=True):
                files.check(name, shape)
        used = {name for parts in names.values() for name in parts}
        unused = [name for name in files.names() if name not in used and not self.family.ignored(name, self.entries)]
        tensors = {
            weight.name: weight.layout.join([files.read(name) for name in names[weight.name]]) for weight in table
        }
        for name in unused:
            if name == HEAD and torch.equal(files.read(name), tensors["embedding.weight"]):
                continue  # a copy of the tied embedding
            hint = f"unexpected tensor {name}; this {self.family.title} has no such weight"
            raise UserError("the weights do not fit the architecture", file=files.file_of[name], hint=hint)
        return tensors


class Files(Tensors):
    """The tensors of a model directory.

    Raises:
        UserError: a file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            super().__init__(path, whole_first=True)
        except UserError as error:
            pickled = sorted(file.name for file in path.glob("*.bin"))
            if error.what != "no weights" or not pickled:
                raise
            hint = f"{error.hint}; {pickled[0]} is not read, since loading it can run code; convert it with "
            hint += "AutoModelForCausalLM.from_pretrained(directory).save_pretrained(new)"
            raise UserError(error.what, file=error.file, hint=hint) from error

    def resolve(self, name: str) -> str:
        """The name of a tensor in the files, which may lack the model's prefix.

        Raises:
            UserError: the tensor is missing, or the index does not list it.
        """
        short = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
        for spelling in (name, short):
            if spelling in self.unlisted:
                hint = f"it omits {spelling}, which {self.file_of[spelling].name} contains and transformers loads; "
                hint += "re-save the model with save_pretrained"
                raise UserError("damaged index", file=self.path / INDEX, hint=hint)
            if spelling in self.file_of:
                return spelling
        hint = f"{name} is missing"
        if name == HEAD:
            hint += ": transformers would initialize it at random; if the head is tied to the embedding, config.json "
            hint += "must say tie_word_embeddings: true"
        raise UserError("the weights do not fit the architecture", file=self.path, hint=hint)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a tensor of the wrong shape or of an unsupported dtype."""
        stored, dtype = self.shape(name), self.part(name).get_dtype()
        if stored != shape:
            hint = f"{name} has shape {stored}, but config.json requires {shape}"
            raise UserError("the weights do not fit the architecture", file=self.file_of[name], hint=hint)
        if dtype not in READABLE:
            hint = f"{name} is {dtype}; supported: {', '.join(sorted(READABLE))}"
            what = "double-precision weights are not supported" if dtype == "F64" else "unsupported weight dtype"
            raise UserError(what, file=self.file_of[name], hint=hint)


def check_out(out: str | Path | None, *, command: str) -> Path:
    """The path of a directory to be written.

    Args:
        command: the command line so far, for the error message.

    Raises:
        UserError: ``out`` is not given, exists, or cannot be created.
    """
    if not out:
        raise UserError("no output directory given", key="out", value=out, hint=f"{command} out=<new directory>")
    path = Path(out)
    check_utf8(path, key="out")
    if path.exists():
        raise UserError("the directory already exists", key="out", value=out, hint="choose a different directory")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        hint = f"{parent} is not a writable directory"
        raise UserError("cannot create the directory", key="out", value=out, hint=hint)
    return path


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Fill a new directory atomically: it has a temporary name until the block ends without an error.

    Raises:
        UserError: the disk is full or not writable; nothing is left behind.
    """
    folder = temporary(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    try:
        with readable_write_errors(out):
            yield folder
            mode = 0o666 & ~_umask()
            for file in folder.rglob("*"):
                if file.is_file():
                    set_mode(file, mode)  # safetensors makes files readable by their owner only
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
    """Write a directory that ``from_pretrained`` reads, completely or not at all. Returns the weights' dtype.

    Args:
        special: ids of special tokens, for config.json and generation_config.json.
        weights: tensors by their names in transformers.
        texts: contents of further files, by file name.
    """
    dtype = main_dtype(weights)
    contents = dict(config) | dict(special) | {"dtype": dtype, "use_cache": True}
    with new_directory(out) as folder:
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
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _in_file(error: UserError, file: Path) -> UserError:
    return UserError(error.what, key=error.key, value=error.value, file=file, hint=error.hint)
