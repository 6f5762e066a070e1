"""A real torchrun on this machine, and the processes that it starts."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.elsewhere import Answer, wait_for
from tinyllm.utils.fault_injection import VARIABLE


class Torchrun:
    """``torchrun <flags> -m tinyllm.train <overrides>``, started.

    Args:
        flags: of torchrun, beside those that say where and how many.
        fault: value of ``TINYLLM_FAULT``.
        prefix: a command that starts torchrun.
    """

    def __init__(
        self,
        *overrides: str,
        flags: tuple[str, ...] = (),
        where: tuple[str, ...] = ("--standalone", "--nproc-per-node=2"),
        fault: str = "",
        prefix: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        command = [*prefix, sys.executable, "-m", "torch.distributed.run", *where, *flags, "-m", "tinyllm.train"]
        self._files = [tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        self.process = subprocess.Popen(
            [*command, *overrides],
            stdout=self._files[0],
            stderr=self._files[1],
            env=os.environ | {VARIABLE: fault, "OMP_NUM_THREADS": "1"} | environment,
            start_new_session=True,
        )

    def ranks(self) -> dict[int, int]:
        """Process ids of the ranks that there are, by rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
                words = (folder / "environ").read_bytes().decode().split("\0")
            except OSError:  # it has ended meanwhile
                continue
            if int(parent) == self.process.pid:
                found |= {int(word[5:]): int(folder.name) for word in words if word.startswith("RANK=")}
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send torchrun itself a signal."""
        self.process.send_signal(number)

    def answer(self) -> Answer:
        """Wait for the end."""
        code = self.process.wait(timeout=180)
        shown = []
        for file in self._files:
            file.seek(0)
            shown.append(file.read())
            file.close()
        return Answer(code=code, out=shown[0], err=shown[1])

    def end(self) -> None:
        """Kill what is left after a test that failed."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for file in self._files:
            file.close()


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def wait_for_steps(metrics: Path, steps: int) -> None:
    """Return when a run has written so many records."""
    wait_for(lambda: metrics.exists() and len(metrics.read_bytes().splitlines()) >= steps, seconds=120)


def errors(answer: Answer) -> list[str]:
    """The lines on standard error that begin as ours do, in their order."""
    return [line for line in answer.err.splitlines() if line.startswith("error: ")]
