"""Connections that do not keep to the protocol: random bytes, broken requests, clients that stop in the middle."""

import contextlib
import json
import random
import socket
import struct
import time
from collections import Counter, deque

import pytest

from tests.support.served import PATIENCE_S, Client, served_model, serving, wait_until

BODY = json.dumps({"model": "tiny", "prompt": "one", "max_tokens": 3, "temperature": 0}).encode()
STREAM = json.dumps({"model": "tiny", "prompt": "one", "max_tokens": 40, "stream": True, "n": 4}).encode()
PATH = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
CHUNKED = PATH + b"Transfer-Encoding: chunked\r\n\r\n"
KEPT_OPEN = 20
"""Connections of slow clients that are open at a time."""
GLIMPSE_S = 0.1
"""How long to look at the answer of a connection that need not end."""
RESET = struct.pack("ii", 1, 0)
"""Close by a reset, without what is still to be sent."""


def request(body: bytes = BODY, *, length: bytes | None = None, more: bytes = b"") -> bytes:
    return (
        PATH + b"Content-Length: " + (b"%d" % len(body) if length is None else length) + b"\r\n" + more + b"\r\n" + body
    )


def mutated(content: bytes, numbers: random.Random) -> bytes:
    """Some bytes changed, left out, inserted or repeated."""
    found = bytearray(content)
    for _ in range(numbers.randint(1, 8)):
        at = numbers.randrange(len(found))
        match numbers.randrange(4):
            case 0:
                found[at] = numbers.randrange(256)
            case 1:
                del found[at]
            case 2:
                found[at:at] = numbers.randbytes(numbers.randint(1, 5))
            case _:
                found[at:at] = found[at : at + numbers.randint(1, 50)]
    return bytes(found)


def random_bytes(numbers: random.Random) -> bytes:
    beginnings = [b"", b"GET / HTTP/1.1\r\n", b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", PATH, CHUNKED]
    beginnings += [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"]
    return numbers.choice(beginnings) + numbers.randbytes(numbers.choice([1, 30, 3000]))


def broken_request(numbers: random.Random) -> bytes:
    return mutated(numbers.choice([request(), request(STREAM), chunks([BODY])]), numbers)


def wrong_length(numbers: random.Random) -> bytes:
    lengths = [b"0", b"1", b"-1", b"1e3", b"+5", b"0x20", b"99999", b"9" * 30, b"", b"3, 3", b"%d" % (len(BODY) + 1)]
    again = [b"", b"Content-Length: 7\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: x\r\n"]
    return request(length=numbers.choice(lengths), more=numbers.choice(again))


def chunks(parts: list[bytes]) -> bytes:
    return CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def chunked_nonsense(numbers: random.Random) -> bytes:
    sizes = [b"zz", b"-1", b"ffffffffffffffffff", b"5;a=b", b"", b"0x5", b"5 5", b"7fffffff", b"00005"]
    if numbers.random() < 0.3:  # valid: one byte at a time
        return chunks([BODY[at : at + 1] for at in range(len(BODY))])
    nonsense = numbers.choice(sizes) + b"\r\n" + BODY + numbers.choice([b"", b"\r\n0\r\nTrailer: a\r\n\r\n"])
    return CHUNKED + numbers.choice([b"", b'3\r\n{"m\r\n']) + nonsense


def huge_headers(numbers: random.Random) -> bytes:
    many = [
        b"".join(b"X-%d: %s\r\n" % (number, b"a" * 20) for number in range(numbers.choice([100, 3000]))),
        b"X: " + b"a" * numbers.choice([10_000, 200_000]) + b"\r\n",
        b"Cookie: \x00\x01\r\n",
        b" folded: a\r\n b\r\n",
    ]
    line = b"GET /" + b"a" * numbers.choice([0, 100_000]) + b" HTTP/1.1\r\nHost: a\r\n"
    return numbers.choice([line + b"\r\n", request(more=numbers.choice(many))])


def several_requests(numbers: random.Random) -> bytes:
    follow = [request(), request(STREAM), b"GET /health HTTP/1.1\r\n\r\n", b"\x00\r\n", broken_request(numbers)]
    return request() + b"".join(numbers.choices(follow, k=numbers.randint(1, 4)))


KINDS = [random_bytes, broken_request, wrong_length, chunked_nonsense, huge_headers, several_requests]


def one_connection(client: Client, numbers: random.Random, kept: deque[socket.socket], seen: Counter[str]) -> None:
    """Send something, wholly or not, at once or slowly; read what comes, or go away."""
    kind = numbers.choice(KINDS)
    content = kind(numbers)
    connection = socket.create_connection(("127.0.0.1", client.port), timeout=PATIENCE_S)
    try:
        manner = numbers.choice(["whole", "half", "slow", "reset", "close"])
        seen[kind.__name__] += 1
        seen[manner] += 1
        if manner == "slow":  # a byte now, the rest when others have come and gone
            connection.sendall(content[:1])
            kept.append(connection)
            if len(kept) > KEPT_OPEN:
                late = kept.popleft()
                with late:
                    late.sendall(content[1:])
            return
        connection.sendall(content if manner != "half" else content[: numbers.randrange(len(content))])
        if manner in ("whole", "half"):
            answer = b""
            if manner == "half":  # nothing more will come: the server must close, too
                connection.shutdown(socket.SHUT_WR)
            else:  # it may wait for more
                connection.settimeout(GLIMPSE_S)
            try:
                while part := connection.recv(65_536):
                    answer += part
                seen["closed"] += 1
            except TimeoutError:
                assert manner == "whole", content
            statuses = [line.split()[1] for line in answer.splitlines() if line.startswith(b"HTTP/1.1 ")]
            assert b"500" not in statuses, (content, answer)
            seen.update(status.decode() for status in statuses)
        elif manner == "reset":
            if numbers.random() < 0.5:
                time.sleep(0.002)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    except (BrokenPipeError, ConnectionResetError):
        seen["refused"] += 1
    finally:
        if connection not in kept:
            connection.close()


def fuzz(client: Client, count: int, *, seed: int) -> Counter[str]:
    """Open that many connections; after each hundred, a proper request must get its answer, and nothing be left."""
    numbers = random.Random(seed)
    seen: Counter[str] = Counter()
    expected = client.complete(prompt="one", max_tokens=3, temperature=0)["choices"]
    with contextlib.ExitStack() as closing:
        kept: deque[socket.socket] = deque()
        for number in range(1, count + 1):
            one_connection(client, numbers, kept, seen)
            if number % 100 == 0 or number == count:
                assert client.complete(prompt="one", max_tokens=3, temperature=0)["choices"] == expected
        for connection in kept:
            closing.enter_context(connection)
    wait_until(lambda: not any(client.worker.load.values()))
    return seen


def test_the_server_outlives_broken_connections() -> None:
    with serving([served_model()]) as client:
        fuzz(client, 25, seed=1)


def test_endless_headers_are_refused_and_requests_sent_ahead_end_with_their_client() -> None:
    def connected() -> socket.socket:
        return socket.create_connection(("127.0.0.1", client.port), timeout=PATIENCE_S)

    with serving([served_model(max_batch=1)]) as client:
        with connected() as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(b"GET /health HTTP/1.1\r\n")
            for number in range(100_000):
                connection.sendall(b"X-%d: a\r\n" % number)
        with connected() as connection:
            connection.sendall(request(STREAM) * 3)
            assert connection.recv(1)
        wait_until(lambda: not any(client.worker.load.values()))
        assert client.complete(prompt="a", max_tokens=2)["usage"]["completion_tokens"] == 2


@pytest.mark.exhaustive
def test_the_server_outlives_5000_broken_connections() -> None:
    with serving([served_model()]) as client:
        print(dict(fuzz(client, 5_000, seed=2)))
