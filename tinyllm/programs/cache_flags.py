"""The flags of ``python -m tinyllm.cache``, in a file of their own because parsing them must not load NumPy."""

import argparse

from tinyllm.config.cli.flags import Flags

EXAMPLES = """\
The caches are in TINYLLM_CACHE, else in ~/.cache/tinyllm. A cache that a living run uses or that is being prepared is
never removed. A removed one is prepared again when a run needs it.

examples:
  python -m tinyllm.cache
  python -m tinyllm.cache --prune --older-than 30d --dry-run
  python -m tinyllm.cache --prune --max-size 10GB --yes
"""


def parse_flags() -> argparse.Namespace:
    """The flags of this process.

    Raises:
        UserError: an unknown flag or a wrong value.
    """
    parser = Flags("cache", description="List the token caches, and remove old ones.", epilog=EXAMPLES)
    parser.add_argument("--prune", action="store_true", help="remove caches, by --older-than, --max-size or both")
    older = "remove those not used for this long: 90m, 12h, 30d, 4w"
    parser.add_argument("--older-than", metavar="AGE", help=older)
    largest = "remove the least recently used until all together have at most this size: 500MB, 10GB; 0: all"
    parser.add_argument("--max-size", metavar="SIZE", help=largest)
    parser.add_argument("--dry-run", action="store_true", help="only show what would be removed")
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()
