"""Picture of the statistics of prepared data: lengths of documents and most frequent tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyllm.data.statistics import DataStatistics
from tinyllm.errors import UserError
from tinyllm.utils.files import expand_home, write_atomic
from tinyllm.utils.late_imports import library
from tinyllm.utils.text import escape_control, short

INSTALL = "pip install matplotlib"
FORMATS = (".png", ".svg", ".pdf")
_BAR, _LINE, _GRID = "#9ab8d3", "#d1495b", "#e3e6ea"
LONGEST_LABEL = 16
"""Characters of a token that are shown."""


def check_picture(path: str | None) -> Path | None:
    """The file of the picture; None if none is wanted.

    Raises:
        UserError: its name has no ending of a picture, or its directory does not exist.
    """
    if path is None:
        return None
    file = expand_home(path)
    if file.suffix.lower() not in FORMATS:
        hint = f"a file name that ends in {', '.join(FORMATS)}"
        raise UserError("unknown format of a picture", key="picture", value=path, hint=hint)
    if not file.absolute().parent.is_dir():
        raise UserError("the directory does not exist", key="picture", value=path, hint="create it first")
    return file


def draw_statistics(statistics: Mapping[str, DataStatistics], file: Path) -> None:
    """Draw :func:`figure_of` into a file, whose ending is the format."""
    metadata = {"Date": None} if file.suffix.lower() == ".svg" else None  # the same data give the same bytes
    figure = figure_of(statistics)
    write_atomic(file, lambda stream: figure.savefig(stream, format=file.suffix[1:].lower(), metadata=metadata))


def figure_of(statistics: Mapping[str, DataStatistics]) -> Any:
    """A row of two panels for each data set: documents by length, and the most frequent tokens.

    Args:
        statistics: by name; a data set that is no mixture has the name "".
    """
    size = (10, 4.2 * len(statistics))
    figure = library("matplotlib.figure", hint=INSTALL).Figure(figsize=size, dpi=150, layout="constrained")
    rows = figure.subplots(len(statistics), 2, squeeze=False)
    for (lengths, tokens), (name, found) in zip(rows, statistics.items(), strict=True):
        _draw_lengths(lengths, found)
        _draw_tokens(tokens, found)
        for axes in (lengths, tokens):
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_axisbelow(True)
        lengths.set_title("\n".join(filter(None, (name, _title(found)))), fontsize=9, loc="left")
    return figure


def _title(statistics: DataStatistics) -> str:
    train = statistics.train
    parts = [f"{short(train.tokens)} training tokens"]
    parts += [f"{train.documents:,} documents"] if train.documents else []
    parts += [f"{train.bytes_per_token:.2f} bytes per token"] if train.bytes_per_token else []
    parts += [f"{statistics.duplicates:.1%} copies"] if statistics.duplicates is not None else []
    return ", ".join(parts)


def _draw_lengths(axes: Any, statistics: DataStatistics) -> None:
    """Bars of documents by length, each twice as long as the one before, and the median."""
    axes.set_xlabel("tokens per training document, at most")
    axes.set_ylabel("documents")
    if not statistics.histogram:
        axes.text(0.5, 0.5, "documents have no marked end", ha="center", va="center", transform=axes.transAxes)
        return
    counts = statistics.histogram
    bins = range(min(_bin(length) for length in counts), max(_bin(length) for length in counts) + 1)
    axes.bar(list(bins), [counts.get(2**number - 1, 0) for number in bins], width=0.85, color=_BAR)
    axes.set_xticks(list(bins), [short(2**number - 1) for number in bins], fontsize=8, rotation=45)
    axes.grid(axis="y", color=_GRID)
    median = statistics.lengths["p50"]
    axes.axvline(_bin(int(median)), color=_LINE, linewidth=1.2, label=f"median {median:,.0f}")
    axes.legend(frameon=False, fontsize=8)


def _bin(length: int) -> int:
    """The number of bits of a length: its bar."""
    return length.bit_length()


def _draw_tokens(axes: Any, statistics: DataStatistics) -> None:
    """Bars of the shares of the most frequent tokens."""
    places = range(len(statistics.frequent))
    axes.barh(list(places), [100 * share for _, share in statistics.frequent], height=0.8, color=_BAR)
    labels = [_label(text) for text, _ in statistics.frequent]
    axes.set_yticks(list(places), labels, fontsize=7, family="monospace", parse_math=False)
    axes.invert_yaxis()
    axes.grid(axis="x", color=_GRID)
    axes.set_xlabel("share of the training tokens (%)")
    axes.set_title("most frequent tokens", fontsize=9, loc="left")


def _label(text: str) -> str:
    shown = escape_control(repr(text))
    return shown if len(shown) <= LONGEST_LABEL else f"{shown[: LONGEST_LABEL - 1]}…"
