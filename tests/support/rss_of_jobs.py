"""Runs the program and tells its memory after every job: a program of its own for the test of memory.

python -m tests.support.rss_of_jobs <arguments of tinyllm.train>
"""

import sys
from pathlib import Path

import tinyllm.train
from tinyllm.studies.sweep.sweep_runner import Sweep


def resident_kb() -> int:
    """Memory of this process that is in RAM."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))


def main() -> None:
    """The program, with a line on standard error whenever a job has ended."""
    look, ended = Sweep.look, set[str]()

    def look_and_tell(self: Sweep) -> None:
        look(self)
        for record in self.records:
            if record.status == "finished" and record.name not in ended:
                ended.add(record.name)
                print(f"RSS {resident_kb()}", file=sys.stderr, flush=True)

    Sweep.look = look_and_tell  # type: ignore[method-assign]
    tinyllm.train.main()


if __name__ == "__main__":
    main()
