"""Data sets of the Hugging Face hub whose rows are records, such as conversations."""

from tinyllm.data.hub import access
from tinyllm.data.hub.layout import Layout, fetched, on_disk, on_hub
from tinyllm.errors import UserError
from tinyllm.utils.text import print_note, quantity

LOADERS = ("parquet", "json")
"""Formats whose rows are read."""


class HubRecords:
    """The splits of a data set of the hub, or of a copy of one on disk. Needs the extra ``data``.

    Args:
        name: ``user/set``; None: ``path`` names a copy.
        path: a directory as the hub has it.
        config: configuration (subset); None: the default one.
        revision: branch, tag or commit; None: the newest.
    """

    def __init__(self, *, name: str | None, path: str | None, config: str | None, revision: str | None) -> None:
        access.datasets_library()
        self.name, self._path, self._config, self._wanted = name, path, config, revision
        self._layout: Layout | None = None

    @property
    def revision(self) -> str | None:
        """The commit that is read, once it is known; None: it is a copy on disk."""
        return self._layout.commit if self._layout else None

    def pin(self, revision: str | None) -> None:
        """Read the commit that a run was trained on, unless the settings name one."""
        if revision is not None and self._wanted is None and self.name is not None:
            self._wanted, self._layout = revision, None

    def files(self, split: str, *, key: str, fetch: bool = True) -> list[str]:
        """The files of a split on this machine.

        Args:
            key: the setting that named the split, for error messages.
            fetch: false: only look whether there are some.

        Raises:
            UserError: there is no such split, its rows are no records, or the hub does not give it.
        """
        if self._layout is None:
            if self.name is not None:
                self._layout = on_hub(self.name, self._config, self._wanted)
            else:
                assert self._path is not None
                self._layout = on_disk(self._path, self._config)
        layout, shown = self._layout, self.name or self._path
        files = layout.files(split, key=key)
        if layout.loader not in LOADERS:
            hint = f"a set of {' or '.join(LOADERS)} files; this one has {layout.loader}"
            raise UserError("the rows of the data set are no records", key=key, value=split, file=shown, hint=hint)
        if self.name is None or layout.commit is None or not fetch:
            return files
        if not all(access.in_cache(self.name, file, layout.commit) for file in files):
            size = quantity(sum(layout.sizes.get(file, 0) for file in files), "B")
            print_note(f"downloading {split} of {self.name}: {len(files)} files, {size}")
        return fetched(layout, self.name, files, offline=access.is_offline())
