"""``tinyllm.train`` that prints its resident memory after every job of a sweep, for the test of memory.

python -m tests.support.rss_of_jobs <arguments of tinyllm.train>
"""

import sys
from pathlib import Path

import tinyllm.train
from tinyllm.studies.sweep.sweep_runner import Sweep


def resident_kb() -> int:
    """Resident memory of this process in kB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))


def main() -> None:
    """Run the program; print a line on standard error whenever a job has finished."""
    refresh, ended = Sweep.refresh, set[str]()

    def refresh_and_print(self: Sweep) -> None:
        refresh(self)
        for record in self.records:
            if record.status == "finished" and record.name not in ended:
                ended.add(record.name)
                print(f"RSS {resident_kb()}", file=sys.stderr, flush=True)

    Sweep.refresh = refresh_and_print  # type: ignore[method-assign]
    tinyllm.train.main()


if __name__ == "__main__":
    main()
