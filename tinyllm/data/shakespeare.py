"""Tiny Shakespeare: 1,115,394 characters of plays, one document, downloaded once."""

import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from typing import Any

from tinyllm.data.prepare import cache_root
from tinyllm.data.text import TextCorpus
from tinyllm.errors import UserError
from tinyllm.utils.deadline import within
from tinyllm.utils.files import expand_home, open_append, recreate, remove, sha256

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SIZE = 1_115_394
PIECE = 2**16  # bytes read at a time
DEADLINE = 6.0  # seconds for a megabyte


class ShakespeareCorpus(TextCorpus):
    """The text of char-rnn's ``input.txt`` (Karpathy, 2015); its end is validation.

    Args:
        path: a copy on disk; None: it is downloaded once into the cache.
        url: where it is downloaded from.
        val_fraction: fraction at the end that becomes validation.
        max_tokens: use only the first so many tokens.
    """

    def __init__(self, *, path: str | None, url: str, val_fraction: float, max_tokens: int | None = None) -> None:
        self._file = cache_root() / "downloads" / f"shakespeare-{SHA256[:12]}.txt"
        self._part = self._file.with_suffix(".part")
        """What is downloaded so far; a download that broke off goes on after it."""
        super().__init__(
            path=str(self._file) if path is None else path,
            val_path=None,
            val_fraction=val_fraction,
            errors="strict",
            max_tokens=max_tokens,
        )
        self._path, self._url = path, url

    def check(self) -> None:
        if self._path is None and not self._file.exists():
            self._download()
        super().check()
        file = self._file if self._path is None else expand_home(self._path)
        if not file.is_file() or sha256(file) != SHA256:
            hint = "leave dataset.path out to download it, or use dataset=text for a text of your own"
            raise UserError("this is not the text of tiny Shakespeare", file=file, hint=hint)

    def settings(self) -> list[Any]:
        return []

    def _download(self) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            within(DEADLINE, self._fetch)
        except (OSError, ValueError, HTTPException) as error:  # ValueError: not an address
            hint = "run the command again to go on, or download it on another machine and give it as dataset.path=…"
            raise UserError(
                f"cannot download the text ({error})", key="dataset.url", value=self._url, hint=hint
            ) from None
        if sha256(self._part) != SHA256:
            size = self._part.stat().st_size
            remove(self._part)
            hint = f"{size:,} bytes with another sha256 than char-rnn's input.txt; give a copy as dataset.path=…"
            raise UserError("the address has a different text", key="dataset.url", value=self._url, hint=hint)
        self._part.replace(self._file)

    def _fetch(self) -> None:
        """Download the part that is missing."""
        there = self._part.stat().st_size if self._part.is_file() else 0
        if there >= SIZE:
            return
        request = urllib.request.Request(self._url, headers={"Range": f"bytes={there}-"} if there else {})
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            goes_on = there and answer.status == HTTPStatus.PARTIAL_CONTENT
            size = there if goes_on else 0
            with open_append(self._part) if goes_on else recreate(self._part) as stream:
                while size <= SIZE and (piece := answer.read1(PIECE)):
                    stream.write(piece)
                    size += len(piece)
        if size < SIZE:
            raise OSError(f"the connection ended after {size:,} of {SIZE:,} bytes")
