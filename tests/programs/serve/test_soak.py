"""Ten minutes of mixed load: memory stays what it is, nothing gets stuck, clients that go away leave nothing behind."""

import json
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.served import PATIENCE_S, Client, started, wait_until

SECONDS = float(os.environ.get("TINYLLM_SOAK_SECONDS", "600"))
SETTLED = min(60.0, SECONDS / 4)
"""Seconds after which memory should no longer grow."""
CLIENTS = 8
PAUSE_S = 0.5
"""Longest pause of a client between two requests: the soak shares its machine."""


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def some_request(numbers: random.Random) -> dict[str, object]:
    """Valid or not, short or long, of any settings."""
    body: dict[str, object] = {
        "model": "mine",
        "prompt": numbers.choice(
            ["a", "the " * numbers.randint(1, 60), ["one", "two"], list(range(97, 117)), "x" * 5000]
        ),
        "max_tokens": numbers.choice([0, 1, 5, 20, 100]),
        "seed": numbers.randrange(100),
    }
    changes = [
        {},
        {"temperature": 0},
        {"n": 3},
        {"stop": ["e", "th"]},
        {"logprobs": 2, "echo": True},
        {"top_k": 5, "repetition_penalty": 1.3},
        {"temperature": -1},
        {"model": "none"},
    ]
    return body | numbers.choice(changes)


def one_client(client: Client, number: int, until: float, seen: Counter[str]) -> None:
    numbers = random.Random(number)
    while time.monotonic() < until:
        time.sleep(numbers.uniform(0, PAUSE_S))
        body = some_request(numbers)
        if numbers.random() < 0.3:  # goes away in the middle
            connection = client.connect()
            content = json.dumps(body | {"stream": True, "n": 2, "max_tokens": 200}).encode()
            connection.request("POST", "/v1/completions", content, {"Content-Type": "application/json"})
            if numbers.random() < 0.7:
                connection.getresponse().read(numbers.randint(1, 400))
            connection.close()
            seen["gone"] += 1
        elif numbers.random() < 0.3:
            status, text, _ = client.ask("/v1/completions", body | {"stream": True})
            assert status != 200 or text.endswith("data: [DONE]\n\n"), text
            seen[str(status)] += 1
        else:
            seen[str(client.ask("/v1/completions", body)[0])] += 1


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process from /proc")
def test_memory_stays_and_nothing_gets_stuck(run_dir: Path) -> None:
    seen: Counter[str] = Counter()
    with started(f"run={run_dir}", "serve.max_batch=4", "serve.max_waiting=12") as (process, client):
        client.timeout = SECONDS  # a machine may be busy for long, but nobody waits that long for an answer
        begin = time.monotonic()
        failed: list[Exception] = []

        def work(number: int) -> None:
            try:
                one_client(client, number, begin + SECONDS, seen)
            except Exception as error:  # told below
                failed.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        time.sleep(SETTLED)
        settled = resident_bytes(process.pid)
        for thread in threads:
            thread.join(2 * SECONDS + PATIENCE_S)
        assert failed == [] and not any(thread.is_alive() for thread in threads)

        def at_work() -> int:
            lines = client.ask("/metrics")[1].splitlines()
            values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
            return int(values["tinyllm_running"]) + int(values["tinyllm_waiting"])

        wait_until(lambda: at_work() == 0)
        end = resident_bytes(process.pid)
        print(f"{dict(seen)}; {settled / 2**20:.1f} MiB after {SETTLED:.0f} s, {end / 2**20:.1f} at the end")
        assert set(seen) <= {"200", "400", "404", "503", "gone"} and min(seen["200"], seen["400"], seen["gone"]) > 0
        assert end <= 1.05 * settled
