"""The named blocks of README.md, so that what is tested stands there: ``python tests/support/readme.py <name>``.

A block is named by a comment right above it: ``<!-- block: test -->``. Needs the standard library only.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def block(name: str) -> str:
    """The text of a named code block.

    Raises:
        LookupError: there is not exactly one of that name.
    """
    pattern = rf"<!-- block: {re.escape(name)} -->\n+```\w*\n(.*?)```"
    found = re.findall(pattern, README.read_text(encoding="utf-8"), re.DOTALL)
    if len(found) != 1:
        raise LookupError(f"{README.name} has {len(found)} blocks named {name!r}")
    return str(found[0])


def commands() -> list[str]:
    """Every line of a bash block, continuation lines joined, without comments."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL))
    lines = (line.strip() for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


if __name__ == "__main__":
    print(block(sys.argv[1]), end="")
