"""Corpora from the Hugging Face hub: any data set with a column of text, and WikiText."""

import os
from collections.abc import Iterator
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, Self

from tinyllm.data.content_hashes import ContentHashes, FoundFile, stamp
from tinyllm.data.corpus import Corpus, Source, fingerprint_of
from tinyllm.data.document import Document
from tinyllm.data.hub import access
from tinyllm.data.hub.layout import Layout, fetched, no_answer, on_disk, on_hub
from tinyllm.data.hub.rows import REMOTE, Spool, Texts, texts_in
from tinyllm.data.prepare import cache_root
from tinyllm.data.selection import text_documents
from tinyllm.data.wikitext_cleaner import articles, is_title, require_title
from tinyllm.errors import UserError
from tinyllm.utils.disk_space import require_space
from tinyllm.utils.files import expand_home
from tinyllm.utils.text import print_note, quantity

BYTES_PER_TOKEN = 8
"""Disk that a streamed token takes at most: its text, compressed, and its id."""


class HubCorpus(Corpus):
    """A data set of the hub, or a copy of one on disk; a row is a document. Needs the extra ``data``.

    Args:
        name: ``user/set``, or a directory as the hub has it.
        path: a copy on disk: a directory as the hub has it, or files, which then are the split ``train``.
        config: configuration (subset); None: the default one.
        revision: branch, tag or commit; None: the newest, whose commit is in run.json.
        field: column that holds the text; ``doc.text`` means the field ``text`` of the structs in the column ``doc``.
        split: split that is trained on.
        val_split: split that is validation; None: it is split off.
        test_split: split for ``evaluate split=test``; None: there is none.
        streaming: read only as much of the files as ``max_tokens`` or ``max_documents`` need.
        selection: arguments of the base class.
    """

    def __init__(
        self,
        *,
        name: str | None,
        path: str | None,
        config: str | None,
        revision: str | None,
        field: str,
        split: str,
        val_split: str | None,
        test_split: str | None,
        streaming: bool,
        **selection: Any,
    ) -> None:
        super().__init__(**selection)
        access.datasets_library()
        if name is not None and path is None and os.path.isdir(expand_home(name)):
            name, path = None, name
        if name is None and path is None:
            hint = "dataset.name=user/set for one of the hub, or dataset.path=… for a copy on disk"
            raise UserError("no data set", key="dataset.name", value=name, hint=hint)
        if path is not None and streaming:
            path_hint = "a copy on disk is read as it is; leave one of the two out"
            raise UserError(
                "only a data set of the hub is streamed", key="dataset.streaming", value=True, hint=path_hint
            )
        self._name, self._path, self._config = name, path, config
        self._wanted = revision
        self._field, self._split, self._val_split, self._test_split = field, split, val_split, test_split
        self._streaming = streaming
        self._layout: Layout | None = None

    @property
    def revision(self) -> str | None:
        return self._layout.commit if self._layout else None

    def pin(self, revision: str | None) -> None:
        if revision is not None and self._wanted is None and self._path is None:
            self._wanted, self._layout = revision, None

    def for_test(self) -> Self:
        if self._test_split is None:
            raise UserError(
                "the data set has no test split", key="dataset.test_split", value=None, hint="use split=val"
            )
        test = copy(self)
        test._split, test._val_split = self._val_split or self._split, self._test_split
        test.selection = type(self.selection)(clean=self.selection.clean, normalize=self.selection.normalize)
        return test

    def check(self) -> None:
        layout = self._found()
        files = layout.files(self._split, key="dataset.split")
        if self._val_split is not None and not self._splits_off(layout):
            layout.files(self._val_split, key="dataset.val_split")
        if layout.commit is None:
            self._require_text(partial(texts_in, layout, files, self._field), self._split)
        elif self._streaming:
            self._require_space(layout, files)

    def open(self, hashes: ContentHashes) -> Source:
        layout = self._found()
        names = [self._split]
        if self._val_split is not None and not self._splits_off(layout):
            names.append(self._val_split)
        texts = [self._texts(layout, split, hashes) for split in names]
        for read, split in zip(texts, names, strict=True):
            self._require_text(read, split)
        if layout.commit is None:
            paths = [layout.files(split, key="dataset.split") for split in names]
            contents = hashes.of([FoundFile(path, stamp(path)) for part in paths for path in part])
            identity: Any = [[contents[path].digest.hex() for path in part] for part in paths]
        else:
            identity = [self._name, layout.commit, self._config, names]
        fraction = self.val_fraction if len(names) == 1 else None
        notes = []
        if self._splits_off(layout):
            notes.append(f"The files have no split {self._val_split}: validation is split off.")
        sides = [partial(self.documents, read) for read in texts]
        settings = [self._field, *self.selection.settings()]
        return Source(
            fingerprint=fingerprint_of(type(self).__name__, identity, settings, fraction),
            documents=self.selection.of(sides[0], count=self.count, notes=notes),
            validation=self.selection.text_of(sides[1]) if len(sides) > 1 else None,
            size=sum(layout.sizes.values()),
            notes=notes,
            path=self._path or self._name,
            val_path=self._val_split,
        )

    def documents(self, texts: Texts) -> Iterator[Document]:
        """The documents in the rows of a split."""
        return text_documents(filter(None, texts()))

    def _found(self) -> Layout:
        if self._layout is None:
            if self._path is not None:
                self._layout = on_disk(self._path, self._config)
            else:
                assert self._name is not None
                self._layout = on_hub(self._name, self._config, self._wanted)
        return self._layout

    def _splits_off(self, layout: Layout) -> bool:
        """Whether validation is split off although a split is named, because files were given and no directory."""
        is_files = self._path is not None and not os.path.isdir(expand_home(self._path))
        return is_files and self._val_split is not None and self._val_split not in layout.splits

    def _texts(self, layout: Layout, split: str, hashes: ContentHashes) -> Texts:
        """Reads the texts of a split; files of the hub are fetched unless they are streamed."""
        files = layout.files(split, key="dataset.split")
        if layout.commit is None:
            return partial(texts_in, layout, files, self._field)
        assert self._name is not None
        if not self._streaming:
            here = all(access.in_cache(self._name, file, layout.commit) for file in files)
            if not here:
                size = quantity(sum(layout.sizes.get(file, 0) for file in files), "B")
                print_note(f"downloading {split} of {self._name}: {len(files)} files, {size}")
            paths = fetched(layout, self._name, files, offline=access.is_offline())
            return partial(texts_in, layout, paths, self._field)
        addresses = [f"{REMOTE}datasets/{self._name}@{layout.commit}/{file}" for file in files]
        key = fingerprint_of(self._name, layout.commit, self._config, split, self._field)[:32]

        def fetch(start: int) -> Iterator[bytes]:
            if access.is_offline():
                assert self._name is not None
                raise no_answer(self._name, "HF_HUB_OFFLINE is set, and this part was not read before")
            return texts_in(layout, addresses, self._field, start=start)

        return Spool(hashes.folder.parent / "streams" / key, fetch, name=self._name)

    def _require_space(self, layout: Layout, files: list[str]) -> None:
        """Refuse to stream more than fits on the disk of the cache, and say how much all of a data set takes."""
        whole = 2 * sum(layout.sizes.get(file, 0) for file in files)  # the text as it is there, and its ids
        limit = self.selection.max_tokens
        needed = whole if limit is None else min(whole, BYTES_PER_TOKEN * limit)
        if limit is None and self.selection.max_documents is None:
            print_note(f"all of {self._name} takes about {quantity(needed, 'B')} of disk; dataset.max_tokens limits it")
        elif limit is None:
            return
        hint = "lower dataset.max_tokens, or set TINYLLM_CACHE to a folder on a larger disk"
        require_space(needed, folder=str(cache_root()), what=str(self._name), hint=hint)

    def _require_text(self, texts: Texts, split: str) -> None:
        """Refuse a split without text."""
        if not any(text and not text.isspace() for text in texts()):
            where = self._path or self._name
            raise UserError(
                f"the split {split} is empty",
                key="dataset.field",
                value=self._field,
                file=where,
                hint="choose another split or column",
            )


class WikitextCorpus(HubCorpus):
    """WikiText: a document is an article. Its rows are lines; ``= Title =`` begins an article."""

    def documents(self, texts: Texts) -> Iterator[Document]:
        return text_documents(article.encode() for article in articles(text.decode() for text in texts()))

    def count_words(self, split: str, hashes: ContentHashes) -> int | None:
        name = {"train": self._split, "val": self._val_split, "test": self._test_split}[split]
        layout = self._found()
        if name is None or name not in layout.splits or (split == "train" and not self.selection.uses_every_document):
            return None
        return sum(len(text.split()) for text in self._texts(layout, name, hashes)())

    def _require_text(self, texts: Texts, split: str) -> None:
        super()._require_text(texts, split)
        if not any(is_title(text.decode()) for text in texts()):
            require_title((), Path(self._path or self._name or ""))
