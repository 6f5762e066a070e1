"""``python -m tinyllm.studio``: what it refuses, before it listens."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from tests.support.fixtures import Call
from tests.support.sources import ROOT
from tests.support.studio import PATIENCE_S


@pytest.mark.parametrize(
    ("arguments", "environ", "where", "hint"),
    [
        (("--prot", "1"), {}, "--prot", "did you mean --port?"),
        (("--port", "x"), {}, "--port", "--help"),
        (("--port", "65536"), {}, "--port=65536", "0 to 65535"),
        (("--data", "none"), {}, "--data=none", "existing"),
        (("--config-dir", "none"), {}, "--config-dir=none", "existing"),
        (("--host", "0.0.0.0"), {}, "--host=0.0.0.0", "TINYLLM_STUDIO_PASSWORD"),
        pytest.param(  # refused by the system, after the web server is loaded
            ("--host", "203.0.113.7"),
            {"TINYLLM_STUDIO_PASSWORD": "long enough"},
            "--host=203.0.113.7",
            "127.0.0.1",
            marks=pytest.mark.slow,
        ),
        ((), {"TINYLLM_STUDIO_PASSWORD": "short"}, "TINYLLM_STUDIO_PASSWORD", "at least 8"),
    ],
)
def test_what_is_refused_takes_one_line(
    call: Call, arguments: tuple[str, ...], environ: dict[str, str], where: str, hint: str
) -> None:
    pytest.importorskip("nicegui", reason="needs the extra studio")
    answer = call("studio", *arguments, **environ)
    assert answer.code == 2 and answer.out == "" and answer.made == []
    assert re.fullmatch(r"error: [^\n]+\n", answer.err) and where in answer.err and hint in answer.err


@pytest.mark.slow
def test_a_second_studio_on_the_port_is_refused(call: Call) -> None:
    pytest.importorskip("nicegui", reason="needs the extra studio")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        answer = call("studio", "--port", str(port))
    assert answer.code == 2 and answer.err.startswith(f"error: the port is in use (--port={port}): ")


def test_without_the_extra_one_line_says_what_to_install(call: Call) -> None:
    with mock.patch("tinyllm.studio.program.is_installed", return_value=False):
        answer = call("studio")
    assert answer.code == 2
    assert answer.err == "error: nicegui not installed (studio): pip install 'tinyllm[studio]'\n"


@contextmanager
def started(folder: Path, *flags: str, **environ: str) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """The studio as a process of its own, in a folder: it, its port and its token, once it listens."""
    command = [sys.executable, "-m", "tinyllm.studio", "--port", "0", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environ
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder) as process:
        try:
            assert process.stderr is not None
            found = (re.search(r"open http://[\w.]+:(\d+)/\?token=(\S+)", line) for line in process.stderr)
            match = next(match for match in found if match)
            yield process, int(match[1]), match[2]
        finally:
            process.kill()


def ask(port: int, path: str, **headers: str) -> tuple[int, http.client.HTTPMessage, str]:
    """The response to a request: status, headers, text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


@pytest.mark.slow
def test_a_studio_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Guarded on real sockets, websocket included; ends in order, leaves nothing, loads nothing from elsewhere."""
    pytest.importorskip("nicegui", reason="needs the extra studio")
    socket_path = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    with started(tmp_path) as (process, port, token):
        own = {"Host": f"localhost:{port}"}
        for path in ("/", "/runs", "/_nicegui/auto/x", "/favicon.ico", socket_path, "/?token=wrong"):
            assert ask(port, path, **own)[0] == 401, path
        assert ask(port, socket_path, **own, **upgrade)[0] == 403
        status, headers, _ = ask(port, f"/?token={token}", **own)
        assert status == 303 and headers["location"] == "/"
        known = own | {"Cookie": headers["set-cookie"].partition(";")[0]}
        status, headers, page = ask(port, "/", **known)
        assert status == 200 and headers["x-frame-options"] == "SAMEORIGIN"
        links = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
        assert links and [link for link in links if re.match(r"(https?:)?//", link)] == []
        assert ask(port, "/", **known, Origin="http://evil.example")[0] == 403
        assert ask(port, "/", Host=f"evil.example:{port}", Cookie=known["Cookie"])[0] == 403
        assert ask(port, socket_path, **known, **upgrade, Origin="http://evil.example")[0] == 403
        assert ask(port, socket_path, **known, **upgrade, Origin=f"http://localhost:{port}")[0] == 101
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    assert list(tmp_path.iterdir()) == []
