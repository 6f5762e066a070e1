"""Bytes as printable characters, as byte-level vocabularies have them."""


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes as printable characters (openai/gpt-2, encoder.py), from character to byte."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_alphabet()
CHAR_OF = {byte: char for char, byte in BYTE_OF.items()}


def spelled_bytes(token: str) -> bytes:
    """The bytes of a token in GPT-2's spelling; one with a character that spells no byte stands for its own text."""
    spelled = [BYTE_OF.get(char) for char in token]
    return token.encode() if None in spelled else bytes(spelled)  # type: ignore[arg-type]
