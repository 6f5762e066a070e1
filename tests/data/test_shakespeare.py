"""The download of Tiny Shakespeare from a server on this machine: whole, cut off, another text, no answer."""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tinyllm.data import shakespeare
from tinyllm.data.prepare import prepare
from tinyllm.data.shakespeare import ShakespeareCorpus
from tinyllm.errors import UserError
from tinyllm.tokenizers.byte import ByteTrainer

TEXT = b"".join(b"First Citizen %d: Before we proceed any further, hear me speak.\n" % i for i in range(3000))


class Server(ThreadingHTTPServer):
    """Serves one text.

    Attributes:
        text: it.
        cut: bytes after which the connection is closed; None: never.
        ranges: whether it can send a part.
        silent: never answer.
        requests: the Range header of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.text, self.cut, self.ranges, self.silent = TEXT, None, True, False
        self.closing = threading.Event()
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/input.txt"


class Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.requests.append(asked)
        if self.server.silent:
            self.server.closing.wait(30)
            return
        start = int(re.findall(r"bytes=(\d+)-", asked)[0]) if asked and self.server.ranges else 0
        content = self.server.text[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.cut])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield serving
        finally:
            serving.closing.set()
            serving.shutdown()
            thread.join()


@pytest.fixture
def corpus(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShakespeareCorpus:
    monkeypatch.setenv("TINYLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shakespeare, "SHA256", hashlib.sha256(TEXT).hexdigest())
    monkeypatch.setattr(shakespeare, "SIZE", len(TEXT))
    return ShakespeareCorpus(path=None, url=server.url, val_fraction=0.1)


def downloads(tmp_path: Path) -> dict[str, int]:
    return {file.suffix: file.stat().st_size for file in (tmp_path / "cache" / "downloads").iterdir()}


def test_it_is_downloaded_once(corpus: ShakespeareCorpus, server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        corpus.check()
    assert server.requests == [None]
    assert downloads(tmp_path) == {".txt": len(TEXT)}
    data = prepare(corpus, ByteTrainer())
    splits = (split.read(0, split.n_tokens - 1).tolist() for split in (data.train, data.val))
    assert b"".join(map(bytes, splits)) == TEXT


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_broke_off_goes_on(
    ranges: bool, corpus: ShakespeareCorpus, server: Server, tmp_path: Path
) -> None:
    server.cut = 70_000
    with pytest.raises(UserError, match=r"connection ended after 70,000 of .*dataset\.url=.*run the command again"):
        corpus.check()
    assert downloads(tmp_path) == {".part": 70_000}
    server.cut, server.ranges = None, ranges
    corpus.check()
    assert server.requests == [None, "bytes=70000-"]  # a server that sends no part sends all of it
    assert downloads(tmp_path) == {".txt": len(TEXT)}


@pytest.mark.parametrize("text", [TEXT[:-1] + b"?", TEXT + b"?", b"<html>" + TEXT])
def test_another_text_is_refused_and_not_kept(
    text: bytes, corpus: ShakespeareCorpus, server: Server, tmp_path: Path
) -> None:
    server.text = text
    with pytest.raises(UserError, match=r"a different text \(dataset\.url=http.*another sha256"):
        corpus.check()
    assert downloads(tmp_path) == {}
    server.text = TEXT
    corpus.check()
    assert downloads(tmp_path) == {".txt": len(TEXT)}


def test_a_server_that_does_not_answer_is_given_up(
    corpus: ShakespeareCorpus, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shakespeare.DEADLINE < 10
    monkeypatch.setattr(shakespeare, "DEADLINE", 0.2)
    server.silent = True
    with pytest.raises(UserError, match=r"cannot download the text .*dataset\.url=.*dataset\.path=") as refused:
        corpus.check()
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "no address", "file:///nope"])
def test_an_address_without_a_server(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLLM_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="cannot download the text"):
        ShakespeareCorpus(path=None, url=url, val_fraction=0.1).check()
