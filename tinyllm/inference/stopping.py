"""Ends a text where a stop string appears."""

from collections.abc import Sequence


class StopFilter:
    """Passes text through until one of the stop strings appears; the stop string itself is left out.

    A stop string may be spread over several pieces: text that could still become one is held back until it is
    decided, so nothing is ever shown and then taken back. Of several stop strings the one that ends first
    counts, of those that end together the longest.

    Args:
        stops: the strings; none of them may be empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise ValueError("a stop string must not be empty.")
        self.stops = tuple(stops)
        self.stopped = False
        self._held = ""

    def push(self, text: str) -> str:
        """The part of the text so far that is certain to be kept and was not returned before."""
        if self.stopped:
            return ""
        text = self._held + text
        ends = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)[1]]
        self._held = text[len(text) - self._undecided(text) :]
        return text[: len(text) - len(self._held)]

    def flush(self) -> str:
        """What was held back, once it is certain that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of the text that is the beginning of a stop string."""
        return max(
            (n for stop in self.stops for n in range(1, min(len(stop) - 1, len(text)) + 1) if text.endswith(stop[:n])),
            default=0,
        )
