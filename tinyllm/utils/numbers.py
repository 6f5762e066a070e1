"""Numbers as people write them."""

import re

LARGEST = 2**63 - 1
"""No counter here is larger; torch has no larger integers either."""
_WHOLE = re.compile(r"([+-]?)([0-9]+(?:_[0-9]+)*)(?:\.([0-9]*))?(?:[eE]\+?([0-9]{1,2}))?")
_POWER = re.compile(r"([0-9]{1,19})\s*\*\*\s*([0-9]{1,2})")


def whole_number(text: str) -> int | None:
    """The whole number that a text writes: ``1000``, ``1_000``, ``1e3``, ``2.5e6`` or ``2**19``; None if it is none.

    Parsed, never evaluated; what is larger than 64 bits is none either.
    """
    text = text.strip()
    if power := _POWER.fullmatch(text):
        base, exponent = int(power[1]), int(power[2])
        if base > 1 and exponent > 63:
            return None
        number = int(base**exponent)
    elif found := _WHOLE.fullmatch(text):
        sign, digits, decimals, shift = found[1], found[2], (found[3] or "").rstrip("0"), int(found[4] or 0)
        if len(decimals) > shift or len(digits) + shift > 40:
            return None
        number = int(f"{sign}{digits}{decimals}") * int(10 ** (shift - len(decimals)))
    else:
        return None
    return number if abs(number) <= LARGEST else None
