"""Print the statistics of prepared data."""

from collections.abc import Sequence

from tinyllm.data.statistics import DataStatistics
from tinyllm.utils.tables import Column, Table
from tinyllm.utils.text import escape_control, short

ESCAPED = str.maketrans({"\n": "\\n", "\t": "\\t", "\r": "\\r"})
BAR = 40
"""Characters of the longest bar."""


def show(statistics: DataStatistics) -> None:
    """Print statistics as tables, a histogram and samples."""
    sides = (statistics.train, statistics.val)
    documents = "documents" if statistics.train.targets is None else "conversations"
    rows = [
        (documents, [_count(side.documents) for side in sides]),
        ("bytes", [_count(side.text_bytes) for side in sides]),
        ("tokens", [_count(side.tokens) for side in sides]),
        ("bytes per token", ["" if (b := side.bytes_per_token) is None else f"{b:.3f}" for side in sides]),
        ("unknown", [_count(side.unknown) for side in sides]),
        ("assistant's turns", [_count(side.turns) for side in sides]),
        ("targets", [_count(side.targets) for side in sides]),
    ]
    columns = [Column(name=""), Column(name="train", right=True), Column(name="val", right=True)]
    Table(columns=columns, rows=[[name, *cells] for name, cells in rows if any(cells)]).show()
    if statistics.duplicates is not None:
        print(f"\nexact copies of earlier training {documents}: {statistics.duplicates:.2%}")
    if statistics.lengths:
        names = {"p0": "shortest", "p50": "median", "p100": "longest"}
        shown = [f"{names.get(name, name)} {value:,.0f}" for name, value in statistics.lengths.items()]
        print(f"\ntokens per training {documents.removesuffix('s')}: " + ", ".join(shown))
        _show_histogram(statistics.histogram, documents)
    for seq_len, count in statistics.left_out.items():
        share = count / max(1, statistics.train.documents or 0)
        print(f"too long for trainer.seq_len={seq_len}: {count:,} ({share:.1%})")
    print("\nmost frequent tokens: " + "  ".join(f"{_spelled(t)} {share:.2%}" for t, share in statistics.frequent))
    for number, sample in enumerate(statistics.samples, start=1):
        print(f"\nsample {number}: " + _joined(sample))


def _show_histogram(histogram: dict[int, int], documents: str) -> None:
    most = max(histogram.values())
    rows = []
    for longest, count in histogram.items():
        span = f"{(longest + 1) // 2:,} to {longest:,}" if longest > 1 else str(longest)
        rows.append([span, f"{count:,}", "▇" * max(1, round(BAR * count / most))])
    Table(
        columns=[Column(name="tokens", right=True), Column(name=documents, right=True), Column(name="")], rows=rows
    ).show()


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}" if number < 10**7 else f"{number:,} ({short(number)})"


def _spelled(text: str) -> str:
    return escape_control(repr(text))


def _joined(tokens: Sequence[str]) -> str:
    """The tokens with ``|`` between them, on one line."""
    return escape_control("|".join(tokens).translate(ESCAPED))
