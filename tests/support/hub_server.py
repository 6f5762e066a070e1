"""A server on this machine that answers like the Hugging Face hub for data sets in local directories."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves directories under the names of data sets.

    Attributes:
        sets: directory by name.
        denied: names that need a token: 401 as for a gated data set.
        silent: never answer.
        cut: file names whose first download ends in the middle, after so many bytes.
        requests: (method, path, Range header) of every request for the content of a file.
    """

    daemon_threads = True

    def __init__(self, sets: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.sets, self.denied = sets, set[str]()
        self.silent = threading.Event()
        self.closing = threading.Event()
        self.cut: dict[str, int] = {}
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        if self.server.silent.is_set():
            self.server.closing.wait(30)
            return
        length = int(self.headers.get("Content-Length") or 0)
        posted = self.rfile.read(length) if length else b""
        path = unquote(self.path.partition("?")[0])
        api = path.startswith("/api/")
        name = "/".join(path.removeprefix("/api").removeprefix("/datasets/").split("/")[:2])
        root = self.server.sets.get(name)
        if name in self.server.denied and not self.headers.get("Authorization"):
            self._error(401, "GatedRepo", "Access to this data set is restricted")
        elif root is None:
            self._error(404, "RepoNotFound", "Repository not found")
        elif not api:
            self._file(root, path.split("/", 6)[6], body=body)
        else:
            self._api(name, root, path.removeprefix(f"/api/datasets/{name}").strip("/"), posted)

    def _api(self, name: str, root: Path, rest: str, posted: bytes) -> None:
        files = sorted(file for file in root.rglob("*") if file.is_file())
        action, _, below = rest.partition("/")
        if action in ("", "revision"):
            if below not in ("", "main", COMMIT):
                self._error(404, "RevisionNotFound", "Invalid rev id")
                return
            siblings = [{"rfilename": file.relative_to(root).as_posix()} for file in files]
            self._json({"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0})
        elif action == "tree":
            folder = root / below.partition("/")[2]
            if not folder.is_dir():
                self._error(404, "EntryNotFound", "Entry not found")
                return
            inside = [file for file in files if file.is_relative_to(folder)]
            folders = {parent for file in inside for parent in file.parents if parent.is_relative_to(folder)} - {folder}
            self._json([_entry(path, root) for path in sorted({*inside, *folders})])
        else:
            asked = parse_qs(posted.decode())["paths"]
            self._json([_entry(root / path, root) for path in asked if (root / path).exists()])

    def _file(self, root: Path, name: str, *, body: bool) -> None:
        file = root / name
        if not file.is_file():
            self._error(404, "EntryNotFound", "Entry not found")
            return
        content = file.read_bytes()
        asked = self.headers.get("Range")
        self.server.requests.append((self.command, name, asked))
        start, stop = 0, len(content)
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(content), len(content))
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if body:
            cut = self.server.cut.pop(name, None)
            self.wfile.write(content[start : stop if cut is None else start + cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True
                self.server.silent.set()  # and nothing answers any more

    def _json(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(path: Path, root: Path) -> dict[str, Any]:
    name = path.relative_to(root).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": hashlib.sha1(name.encode()).hexdigest()}
    content = path.read_bytes()
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


@contextmanager
def serving(sets: dict[str, Path]) -> Iterator[HubServer]:
    """A running server, which ends with the block."""
    server = HubServer(sets)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
