"""Tensors by name out of safetensors files: one file, or several with Hugging Face's index."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tinyllm.errors import UserError
from tinyllm.utils.files import check_utf8, is_file_name, read_json

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"


class Tensors:
    """The tensors of a directory. Nothing but names and shapes is read before it is asked for.

    An index is the authority: what another file holds under a name that the index gives elsewhere is a stale copy.

    Args:
        path: the directory.
        whole_first: a whole file wins over an index, as in transformers; else the index does.

    Attributes:
        file_of: where each tensor is.
        unlisted: those that a file holds and its index does not list.

    Raises:
        UserError: a file is missing or damaged, or does not hold what the index says.
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
                raise UserError("damaged index", file=path / INDEX, hint=f"{file} is not in this directory")
            if not file.is_file():
                raise UserError("no weights", file=file, hint="the file is missing")
            try:
                self._open[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError("damaged weights", file=file, hint=str(error)) from error
            names = self._open[file].keys()
            self.file_of |= dict.fromkeys((name for name in names if listed.get(name, file.name) == file.name), file)
        for name, file_name in listed.items():
            if name not in self.file_of:
                hint = f"it says that {name} is in {file_name}, which does not hold it"
                raise UserError("damaged index", file=path / INDEX, hint=hint)
        if has_index:
            self.unlisted = self.file_of.keys() - listed.keys()

    def names(self) -> list[str]:
        """All of them."""
        return list(self.file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a whole tensor."""
        return tuple(self.part(name).get_shape())

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """One tensor on the CPU, or some rows of it; the others stay on the disk."""
        tensor: Tensor = self._open[self.file_of[name]].get_tensor(name) if rows is None else self.part(name)[rows]
        return tensor

    def part(self, name: str) -> Any:
        """What safetensors knows of a tensor without reading it."""
        return self._open[self.file_of[name]].get_slice(name)


def weight_map(index: Path) -> dict[str, str]:
    """The file name of each tensor, out of an index.

    Raises:
        UserError: it cannot be read, or says something else.
    """
    listed = read_json(index, what="damaged index").get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UserError("damaged index", file=index, hint="weight_map must say the file of each tensor")
    if not_one := next((name for name in listed.values() if not is_file_name(name)), None):
        hint = f"{not_one[:40]} is not the name of a file in this directory"
        raise UserError("damaged index", file=index, hint=hint)
    return listed
