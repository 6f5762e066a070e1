"""Words of a bounded length: what makes learning and encoding linear on a text without blanks."""

from collections.abc import Callable, Sequence

from tinyllm.tokenizers.cuts import bounded, plain_cuts
from tinyllm.tokenizers.markers import Markers


class BoundedWords:
    """The places between the words of a rule whose words are of a bounded length.

    A match looks at no more than ``limit`` and two characters, so what the rule does before the last ones of a text
    does not depend on what follows.
    """

    def __init__(self, limit: int, markers: Markers) -> None:
        from tokenizers import Regex, pre_tokenizers

        self._split = pre_tokenizers.Split(Regex(bounded(limit)), "isolated")
        self._reach = limit + 2
        self._markers = markers

    def last_cut(self, text: str) -> int:
        """The last place where ``text``, which begins with a word, may be cut; 0 if there is none."""
        start = self._markers.last_end(text)
        certain = len(text) - self._reach
        for _, (begin, _) in reversed(self._split.pre_tokenize_str(text[start:])):
            place = start + begin
            if 0 < place <= certain and self._markers.may_cut(text, place) and _same_at_end(text, place):
                return place
        return 0


def _same_at_end(text: str, place: int) -> bool:
    """Whether the rule ends a word at ``place`` too if the text ends there: behind blanks it looks at what follows."""
    return not text[place - 1].isspace() or text[place - 1] == text[place]


def learning_cut(*, max_word: int | None, special_tokens: Sequence[str]) -> Callable[[str], int]:
    """Where texts to learn from may be cut: the ``last_cut`` of the tokenizer that will be learnt.

    Args:
        special_tokens: those that are matched.
    """
    markers = Markers(dict.fromkeys(special_tokens, 0))
    rules = [plain_cuts().last] + ([BoundedWords(max_word, markers).last_cut] if max_word else [])
    return lambda text: next((cut for rule in rules if (cut := rule(text)) and markers.may_cut(text, cut)), 0)
