"""The command line of ``python -m tinyllm.replay``, which is answered without loading torch."""

import argparse
from pathlib import Path

from tinyllm.config.cli.flags import Flags

EXAMPLES = """\
Exit code 0: every metric and weight has the same bits. 1: something differs, and both runs are kept. 2: the run cannot
be replayed. Values that depend on the clock (speed, memory, seconds) are not compared.

examples:
  python -m tinyllm.replay outputs/2026-01-31/12-00-00_nano_a1b2
  python -m tinyllm.replay outputs/2026-01-31/12-00-00_nano_a1b2 --steps 100 --out again
"""


def parse_flags() -> argparse.Namespace:
    """The flags of this process.

    Raises:
        UserError: an unknown flag or a wrong value.
    """
    flags = Flags("replay", description="Repeat a run and compare it with the original bit for bit.", epilog=EXAMPLES)
    flags.add_argument("run", type=Path, help="the run directory")
    flags.add_argument("--out", type=Path, help="directory for the new run; default: a temporary one")
    flags.add_argument("--steps", type=int, help="train and compare only the first STEPS steps")
    flags.add_argument("--config-dir", help="directory of your own option files, if the run was trained with one")
    flags.add_argument("--json", action="store_true", help="print one JSON object")
    return flags.parse_args()
