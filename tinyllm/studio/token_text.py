"""A text that grows token by token; pointing at a token shows what it was chosen from."""

from collections.abc import Callable
from functools import partial

from nicegui import ui

from tinyllm.inference.conversing import CALL, NOTE, RESULT, TEXT
from tinyllm.studio.writing.desk import Side, Turn
from tinyllm.studio.writing.pieces import END, Piece, WrittenToken
from tinyllm.studio.writing.writer import State

SURPRISES = (0.5, 0.2, 0.05, 0.01)
"""Probabilities below which a token has a stronger background."""
WORDS = {CALL: "calls", RESULT: "result"}
SHOWN = {
    State.WAITING: "waiting for another text to end…",
    State.LOADING: "loading the model…",
    State.WRITING: "",
    State.DONE: "",
    State.STOPPED: "stopped",
    State.FAILED: "",
}
"""What stands below a text that has no error."""


class TokenText:
    """The texts of one side, built in the current slot and brought up to date by :meth:`update`.

    Everything is built from labels, which show text and never markup.

    Args:
        name: of the texts, for screen readers.
        inspect: called with the piece that is pointed at, or with None once it is gone.
    """

    def __init__(self, side: Side, *, name: str, inspect: Callable[[Piece | None], None]) -> None:
        self.side, self.inspect = side, inspect
        self._turns: list[Turn] = []
        """The turns that are shown."""
        self._shown = 0
        """Pieces of the last turn that are shown."""
        self._tokens: list[tuple[ui.label, Piece]] = []
        self._at = -1
        """The token that is pointed at."""
        self._state: tuple[State, str] | None = None
        self.box = ui.element("div").classes("tokens").props("tabindex=0 role=group")
        self.box.props["aria-label"] = f"{name}: the left and right arrow keys go from token to token"
        self.box.on("keydown.left.prevent", partial(self._move, -1), args=[])
        self.box.on("keydown.right.prevent", partial(self._move, 1), args=[])

    def update(self) -> None:
        """Show what was written since the last call."""
        turns = self.side.turns
        if self._turns != turns[: len(self._turns)]:
            self._clear()
        if self._turns:
            self._grow(self._turns[-1])
        for turn in turns[len(self._turns) :]:
            self._begin(turn)
            self._grow(turn)

    def _clear(self) -> None:
        self.box.clear()
        self._turns, self._tokens, self._at = [], [], -1
        self.inspect(None)

    def _begin(self, turn: Turn) -> None:
        self._turns.append(turn)
        self._shown, self._state = 0, None
        with self.box, ui.element("div").classes("turn"):
            if turn.given:
                ui.label(turn.given).classes("given")
            self._body = ui.element("div").classes("written")
            self._foot = ui.label().classes("soft")

    def _grow(self, turn: Turn) -> None:
        job = turn.job
        state = (job.state, job.error)  # read first: what is written after it is shown the next time
        pieces = job.pieces[self._shown :]
        with self._body:
            for piece in pieces:
                self._add(piece)
        self._shown += len(pieces)
        if state != self._state:
            self._state = state
            self._foot.set_text(job.error or SHOWN[job.state])
            self._foot.classes(replace="bad" if job.error else "soft").props(
                "role=alert" if job.error else "role=status"
            )

    def _add(self, piece: Piece) -> None:
        if piece.kind == TEXT:
            label = ui.label(piece.text).classes(f"token {surprise(piece.tokens)}")
        elif piece.kind == END:
            label = ui.label(f"■ {piece.text}").classes("token ending soft")
        elif piece.kind == NOTE:
            label = ui.label(piece.text).classes("note soft")
        else:
            label = ui.label(f"{WORDS[piece.kind]} {piece.text}").classes(f"token tool {piece.kind}")
        if piece.tokens:
            at = len(self._tokens)
            self._tokens.append((label, piece))
            label.on("mouseenter", partial(self._point, at), args=[], throttle=0.05)
            label.on("click", partial(self._point, at), args=[])

    def _move(self, by: int) -> None:
        if self._tokens:
            at = self._at + by if self._at >= 0 else 0
            self._point(min(max(at, 0), len(self._tokens) - 1))

    def _point(self, at: int) -> None:
        if at >= len(self._tokens):  # the text was replaced while the pointer was on its way
            return
        if 0 <= self._at < len(self._tokens):
            self._tokens[self._at][0].classes(remove="pointed")
        self._at = at
        label, piece = self._tokens[at]
        label.classes("pointed")
        self.inspect(piece)


class Inspector:
    """A table of the alternatives to a token, built in the current slot."""

    COLUMNS = (
        {"name": "text", "label": "Token", "field": "text", "align": "left"},
        {"name": "probability", "label": "Probability", "field": "probability", "align": "right"},
        {"name": "drawn", "label": "Drawn with", "field": "drawn", "align": "right"},
    )

    def __init__(self, name: str) -> None:
        with ui.element("div").classes("inspector").props("aria-live=polite role=region") as box:
            box.props["aria-label"] = name
            self.heading = ui.label(HINT).classes("soft")
            self.table = ui.table(columns=[dict(column) for column in self.COLUMNS], rows=[], row_key="key")
            self.table.props("flat dense hide-pagination wrap-cells").classes("alternatives mono")
            self.table.set_visibility(False)

    def show(self, piece: Piece | None) -> None:
        """Show the last token of a piece; those before it are named in the heading. None: no token."""
        self.table.set_visibility(piece is not None)
        if piece is None:
            self.heading.set_text(HINT)
            return
        *before, token = piece.tokens
        chosen = token.chosen
        parts = [f"“{each.chosen.text}” {percent(each.chosen.probability)}" for each in before]
        self.heading.set_text(
            f"“{chosen.text}”: probability {percent(chosen.probability)}, drawn with {percent(chosen.drawn)}"
            + (f"; before it, without text of their own: {', '.join(parts)}" if parts else "")
        )
        alternatives = token.top if chosen in token.top else (*token.top, chosen)
        self.table.rows = [
            {
                "key": number,
                "text": f"{'▸ ' if each == chosen else ''}{each.text}",
                "probability": percent(each.probability),
                "drawn": f"excluded by {each.excluded_by}" if each.excluded_by else percent(each.drawn),
            }
            for number, each in enumerate(alternatives)
        ]


HINT = "Point at a token to see its probability and the alternatives."


def surprise(tokens: tuple[WrittenToken, ...]) -> str:
    """The class of a piece by the probability of its least likely token under the model."""
    least = min((token.chosen.probability for token in tokens), default=1.0)
    return f"surprise-{sum(least < limit for limit in SURPRISES)}"


def percent(share: float) -> str:
    """A probability with three digits, small ones too."""
    return f"{share:.1%}" if share >= 0.001 or share == 0 else f"{share * 100:.1g}%"


STYLE = """
.tokens { min-height: 6rem; margin-top: 0.75rem; line-height: 1.75; overflow-wrap: anywhere; border-radius: 6px; }
.tokens .given { white-space: pre-wrap; color: var(--soft); }
.tokens.continued .given, .tokens.continued .written { display: inline; }
.tokens.talk .given { background: var(--raised); border: 1px solid var(--line); border-radius: 8px;
  padding: 0.25rem 0.75rem; margin: 0.75rem 0 0.5rem auto; width: fit-content; max-width: 85%; color: var(--ink); }
.token { display: inline; white-space: pre-wrap; border-radius: 2px; cursor: default; }
.token:hover, .token.pointed { outline: 1.5px solid var(--accent); }
.token.ending { display: inline-block; margin-left: 0.5rem; font-size: 0.85em; }
.token.tool { display: block; width: fit-content; margin: 0.35rem 0; padding: 0 0.5rem;
  border-left: 3px solid var(--accent); background: var(--raised); }
.note { font-size: 0.9em; }
.coloured .surprise-1 { background: color-mix(in srgb, #c77700 12%, transparent); }
.coloured .surprise-2 { background: color-mix(in srgb, #c77700 22%, transparent); }
.coloured .surprise-3 { background: color-mix(in srgb, #c7401f 26%, transparent); }
.coloured .surprise-4 { background: color-mix(in srgb, #c7401f 40%, transparent); }
.inspector { border-top: 1px solid var(--line); margin-top: 0.75rem; padding-top: 0.5rem; }
.alternatives { background: transparent !important; color: inherit !important; }
.alternatives td, .alternatives th { font-size: 13px !important; height: auto !important; padding: 1px 8px !important; }
.alternatives td:first-child { white-space: pre-wrap; overflow-wrap: anywhere; }
"""
