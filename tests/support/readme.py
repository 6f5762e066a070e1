"""Named code blocks of the documentation, so that tests run exactly what it shows.

A comment above a block names it: ``<!-- block: test -->``. ``python tests/support/readme.py test`` prints the block;
it needs the standard library only, because CI calls it before the environment exists.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
WITH_BLOCKS = (README, ROOT / "docs" / "extending.md")


def block(name: str) -> str:
    """The text of a named code block.

    Raises:
        LookupError: no block has this name, or several do.
    """
    pattern = rf"<!-- block: {re.escape(name)} -->\n+```\w*\n(.*?)```"
    text = "\n".join(path.read_text(encoding="utf-8") for path in WITH_BLOCKS)
    blocks = re.findall(pattern, text, re.DOTALL)
    if len(blocks) != 1:
        raise LookupError(f"the documentation has {len(blocks)} blocks named {name!r}, expected one")
    return str(blocks[0])


def commands() -> list[str]:
    """All command lines of the README's bash blocks, with continuation lines joined and comments removed."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL))
    lines = (line.strip() for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


if __name__ == "__main__":
    print(block(sys.argv[1]), end="")
