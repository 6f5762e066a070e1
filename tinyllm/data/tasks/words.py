"""Tasks: words backwards, their length, and in capitals."""

import re
from functools import cache
from importlib import import_module

from tinyllm.data.tasks.problem import Dice, Family, Problem, worded
from tinyllm.errors import UserError
from tinyllm.utils.expressions import evaluate

OPERATIONS = {"reverse": "'{w}'[::-1]", "length": "len('{w}')", "capitals": "'{w}'.upper()"}
WORD = re.compile(r"(?<![A-Za-z_.`'])[a-z]{3,10}(?![A-Za-z_(`'])")


class Words(Family):
    """The English words of Python's language reference."""

    name = "words"

    def draw(self, dice: Dice, *, unseen: bool) -> Problem:
        operation, word = dice.of(list(OPERATIONS)), dice.of(words())
        call = OPERATIONS[operation].format(w=word)
        return Problem(
            family=self.name,
            key=f"word|{word}",
            question=worded(operation, dice, unseen=unseen, w=word),
            answer=evaluate(call),
            call=call,
        )


@cache
def words() -> tuple[str, ...]:
    """The lower-case words of three to ten letters in ``pydoc_data.topics``, sorted.

    Raises:
        UserError: this Python comes without the language reference.
    """
    try:
        topics = import_module("pydoc_data.topics").topics
    except ImportError as error:
        hint = "this Python lacks pydoc_data; leave out the family words, or install the complete standard library"
        raise UserError("no list of words", key="dataset.families", value="words", hint=hint) from error
    return tuple(sorted({word for text in topics.values() for word in WORD.findall(text)}))
