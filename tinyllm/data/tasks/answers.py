"""The sentences around an answer: those that training writes, and how the answer is found in a reply."""

import re

SHORT = "{}"
SENTENCES = ("The answer is {}.", "It is {}.", "That makes {}.", "The result is {}.", "You get {}.")
"""The longer ways of saying an answer."""
_FRAMES = [re.compile(re.escape(frame).replace(r"\{\}", "(.+)"), re.DOTALL) for frame in SENTENCES]


def answer_in(reply: str) -> str:
    """The answer in a reply: the reply itself, or what one of the known sentences says.

    The whole reply must be the answer or one such sentence, so a reply that lists many answers is none of them.
    """
    reply = reply.strip()
    for frame in _FRAMES:
        if match := frame.fullmatch(reply):
            return match[1].strip()
    return reply
