"""Tables: columns of plain text in a pipe, drawn in a terminal, never with control characters."""

import io

from tinyllm.utils.tables import Column, Table

TABLE = Table(
    columns=[Column(name="name"), Column(name="loss", right=True, styles={"9.5": "red"})],
    rows=[["a", "10.25"], ["b\x1b[2J", "9.5"]],
    title="runs",
    bold=[1],
    sections=[1],
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_aligned_columns() -> None:
    stream = io.StringIO()
    TABLE.show(stream)
    assert stream.getvalue() == "runs\nname       loss\na         10.25\nb\\x1b[2J    9.5\n"


def test_a_terminal_gets_a_drawing_of_the_same_cells() -> None:
    stream = Terminal()
    TABLE.show(stream)
    lines = stream.getvalue().splitlines()
    assert "b\\x1b[2J" in lines[-2] and "╭" in lines[1]
    assert TABLE.drawn_width == len(lines[1]) == 20
