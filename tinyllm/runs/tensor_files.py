"""Reads tensors by name from safetensors files: a single file, or several with Hugging Face's index."""

from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tinyllm.errors import UserError
from tinyllm.utils.files import check_utf8, is_file_name, read_json

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"


class Weights(Protocol):
    """Tensors by name, such as :class:`tinyllm.runs.tensor_files.Tensors`."""

    def names(self) -> list[str]:
        """The names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor on the CPU, or only some of its rows."""


class Tensors:
    """The tensors of a directory, read lazily; opening reads only names and shapes.

    If a tensor is in several files, it is read from the file that the index names.

    Args:
        path: the directory.
        whole_first: prefer a single file to an index, as transformers does; default: prefer the index.

    Attributes:
        file_of: the file of each tensor.
        unlisted: names of tensors that are in a file but not in the index.

    Raises:
        UserError: a file is missing or damaged, or lacks a tensor that the index lists.
    """

    def __init__(self, path: Path, *, whole_first: bool = False) -> None:
        check_utf8(path)
        self.path = path
        self.file_of: dict[str, Path] = {}
        self.unlisted: set[str] = set()
        self._open: dict[Path, Any] = {}
        has_index = (path / INDEX).is_file() and not (whole_first and (path / MODEL).is_file())
        listed = weight_map(path / INDEX) if has_index else {}
        for file in (path / name for name in (dict.fromkeys(listed.values()) if has_index else (MODEL,))):
            if file.parent != path:
                raise UserError("damaged index", file=path / INDEX, hint=f"{file} is outside the directory")
            if not file.is_file():
                raise UserError("no weights", file=file, hint="the file is missing")
            try:
                self._open[file] = safe_open(file, framework="pt")  # stays open: tensors are read when used
            except (SafetensorError, OSError) as error:
                raise UserError("damaged weights", file=file, hint=str(error)) from error
            names = self._open[file].keys()
            self.file_of |= dict.fromkeys((name for name in names if listed.get(name, file.name) == file.name), file)
        for name, file_name in listed.items():
            if name not in self.file_of:
                hint = f"it lists {name} in {file_name}, which does not contain it"
                raise UserError("damaged index", file=path / INDEX, hint=hint)
        if has_index:
            self.unlisted = self.file_of.keys() - listed.keys()

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self.file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self.part(name).get_shape())

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor on the CPU, or only some of its rows."""
        tensor: Tensor = self._open[self.file_of[name]].get_tensor(name) if rows is None else self.part(name)[rows]
        return tensor

    def part(self, name: str) -> Any:
        """The safetensors slice object of a tensor, which knows its shape and reads on indexing."""
        return self._open[self.file_of[name]].get_slice(name)


def weight_map(index: Path) -> dict[str, str]:
    """The file name of each tensor according to an index file.

    Raises:
        UserError: the index cannot be read or is damaged.
    """
    listed = read_json(index, what="damaged index").get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UserError("damaged index", file=index, hint="weight_map must map each tensor to a file name")
    if wrong := next((name for name in listed.values() if not is_file_name(name)), None):
        hint = f"{wrong[:40]} is not the name of a file in this directory"
        raise UserError("damaged index", file=index, hint=hint)
    return listed
