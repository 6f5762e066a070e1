"""``python -m tinyllm.studio``: what it refuses, before it listens."""

import re
import socket
from unittest import mock

import pytest

from tests.support.fixtures import Call


@pytest.mark.parametrize(
    ("arguments", "environ", "where", "hint"),
    [
        (("--prot", "1"), {}, "--prot", "did you mean --port?"),
        (("--port", "x"), {}, "--port", "--help"),
        (("--port", "65536"), {}, "--port=65536", "0 to 65535"),
        (("--data", "none"), {}, "--data=none", "existing"),
        (("--config-dir", "none"), {}, "--config-dir=none", "existing"),
        (("--host", "0.0.0.0"), {}, "--host=0.0.0.0", "TINYLLM_STUDIO_PASSWORD"),
        (("--host", "203.0.113.7"), {"TINYLLM_STUDIO_PASSWORD": "long enough"}, "--host=203.0.113.7", "127.0.0.1"),
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
