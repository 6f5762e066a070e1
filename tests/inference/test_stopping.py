"""Stop strings: the result does not depend on how the text is cut into pieces."""

from hypothesis import given
from hypothesis import strategies as st

from tinyllm.inference.generator import StopFilter

LETTERS = st.text(alphabet="ab\n", max_size=30)


def expected(text: str, stops: list[str]) -> str:
    """Character by character: the text before the stop string that is complete first, the longest of
    several."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - len(max(found, key=len))]
    return text


@given(text=LETTERS, stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3), data=st.data())
def test_stop_filter_gives_the_same_text_for_any_pieces(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    stop_filter = StopFilter(stops)
    shown = ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        shown += stop_filter.push(text[start:end])
        assert expected(text, stops).startswith(shown)  # nothing is ever taken back
    shown += stop_filter.flush()
    assert shown == expected(text, stops)
    assert stop_filter.stopped == (shown != text)


def test_text_is_held_back_only_while_it_may_become_a_stop_string() -> None:
    stop_filter = StopFilter(["\n\n", "END"])
    assert [stop_filter.push(piece) for piece in ("one\n", "two E", "N", "X", "E", "ND more")] == [
        "one", "\ntwo ", "", "ENX", "", "",
    ]  # fmt: skip
    assert stop_filter.stopped
    assert stop_filter.flush() == ""
