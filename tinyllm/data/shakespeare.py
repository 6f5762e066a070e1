"""Tiny Shakespeare: 1,115,394 characters of plays, one document, downloaded once."""

import hashlib
import urllib.request
from typing import Any

from tinyllm.data.prepare import cache_root
from tinyllm.data.text import TextCorpus
from tinyllm.errors import UserError
from tinyllm.utils.deadline import within
from tinyllm.utils.files import expand_home, sha256, write_bytes

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SIZE = 1_115_394
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
            data = within(DEADLINE, self._fetch)
        except (OSError, ValueError) as error:  # ValueError: not an address
            hint = "download it on another machine and give it as dataset.path=…"
            raise UserError(
                f"cannot download the text ({error})", key="dataset.url", value=self._url, hint=hint
            ) from None
        if hashlib.sha256(data).hexdigest() != SHA256:
            hint = f"{len(data):,} bytes with another sha256 than char-rnn's input.txt; give a copy as dataset.path=…"
            raise UserError("the address has a different text", key="dataset.url", value=self._url, hint=hint)
        write_bytes(self._file, data)

    def _fetch(self) -> bytes:
        with urllib.request.urlopen(self._url, timeout=DEADLINE) as answer:
            return bytes(answer.read(SIZE + 1))
