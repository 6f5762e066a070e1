"""Two hosts, simulated by network namespaces with separate addresses and a virtual cable."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.copies import SHARED, run
from tests.support.launched import Torchrun, errors, wait_for_steps
from tests.support.training_runs import digest, metrics

ABLE = os.geteuid() == 0 and shutil.which("ip") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ABLE, reason="network namespaces need root and the program ip"),
]
OPTIONS = ("trainer.max_steps=60", "trainer.checkpoint_every=10", "trainer.eval_every=20", "trainer.eval_tokens=100")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
PORT = 29_513
Nodes = list[Torchrun]


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Network:
    """Two hosts and their processes."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.started: Nodes = []

    def start(self, *overrides: str, where: Callable[[int], tuple[str, ...]]) -> Nodes:
        """A torchrun on each host, with one rank."""
        nodes = []
        for node, name in enumerate(self.names):
            flags = ("--nnodes=2", "--nproc-per-node=1", *where(node))
            prefix = ("ip", "netns", "exec", name)
            nodes.append(Torchrun(*overrides, where=flags, prefix=prefix, GLOO_SOCKET_IFNAME=f"{name}-0"))
        self.started += nodes
        return nodes

    def kill(self, node: int) -> None:
        """All that runs on a host ends at once."""
        for pid in ip("netns", "pids", self.names[node]).split():
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def network() -> Iterator[Network]:
    names = [f"t{os.getpid()}{side}" for side in "ab"]
    for name in names:
        ip("netns", "add", name)
    try:
        ip(
            "link",
            "add",
            f"{names[0]}-0",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            f"{names[1]}-0",
            "netns",
            names[1],
        )
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", f"{name}-0")
            for device in ("lo", f"{name}-0"):
                ip("-n", name, "link", "set", device, "up")
        made = Network(names)
        yield made
        for node in range(2):
            made.kill(node)
        for one in made.started:
            one.end()
    finally:
        for name in names:
            ip("netns", "delete", name)


def fixed(node: int) -> tuple[str, ...]:
    """Each host is given its number and the address of the first."""
    return (f"--node-rank={node}", f"--master-addr={ADDRESSES[0]}", f"--master-port={PORT}")


def elastic(node: int) -> tuple[str, ...]:
    """The hosts agree on their numbers."""
    place = (f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}", f"--local-addr={ADDRESSES[node]}")
    return ("--rdzv-backend=c10d", "--rdzv-id=test", f"--rdzv-conf=is_host={int(node == 0)}", *place)


def test_a_host_is_lost_and_the_run_started_again(network: Network, corpus: str, tmp_path: Path) -> None:
    whole = run(2, tmp_path / "whole", *SHARED, corpus, *OPTIONS)
    place = tmp_path / "run"
    options = (*SHARED, corpus, *OPTIONS, f"run.dir={place}", "resume=auto")
    nodes = network.start(*options, "distributed.timeout_s=20", where=elastic)
    wait_for_steps(place / "metrics.jsonl", 12)
    lost = next(node for node in range(2) if 1 in nodes[node].ranks())
    network.kill(lost)
    answer = nodes[1 - lost].answer()
    assert answer.code == 1
    told = r"error: a rank was lost \(rank 0, step \d+\): no heartbeat from rank 1 \(last seen at step \d+\); "
    assert re.match(told, errors(answer)[0]), answer
    again = [node.answer() for node in network.start(*options, where=fixed)]
    assert [answer.code for answer in again] == [0, 0], again
    assert digest(place) == digest(whole)
    assert metrics(place) == metrics(whole)


@pytest.mark.exhaustive
def test_the_cable_is_cut(network: Network, corpus: str, tmp_path: Path) -> None:
    """Both hosts end."""
    place = tmp_path / "run"
    options = (*SHARED, corpus, "trainer.max_steps=100000", f"run.dir={place}", "distributed.timeout_s=20")
    nodes = network.start(*options, where=fixed)
    wait_for_steps(place / "metrics.jsonl", 5)
    ip("-n", network.names[0], "link", "set", f"{network.names[0]}-0", "down")
    told = [errors(node.answer())[0] for node in nodes]
    assert "(rank 0, step " in told[0] and "no heartbeat from rank 1 (last seen at step " in told[0]
    assert f"the launcher's store at {ADDRESSES[0]}:{PORT} does not answer" in told[1]
