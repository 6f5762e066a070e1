"""``python -m tinyllm.runs outputs --sort val/bpb``: list, filter, sort and compare run directories."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllm.config.cli.flags import Flags, answer
from tinyllm.errors import UserError
from tinyllm.runs.facts import compared_settings, differing, origins
from tinyllm.runs.listing import DAMAGED, ListedRun, find_runs
from tinyllm.runs.query import check_keys, in_order, parse_condition
from tinyllm.utils.tables import Column, Table, csv_text
from tinyllm.utils.text import duration, escape_control, short, shown_path

COLUMNS = (
    *("run", "status", "model", "attn", "ffn", "moe", "optimizer", "dataset", "seed"),
    *("parameters", "step", "val/bpb", "best_val_loss", "tokens/s", "age", "note"),
)
TOTALS = ("step", "tokens", "flops", "seconds", "best_val_loss")
"""Figures of a whole run. The name of every metric of one step has a slash."""
SHARED = ("model", "attn", "ffn", "moe", "optimizer", "dataset", "seed")
"""Columns that are left out when all runs agree; a line below the table then has the value."""
STYLES = {"running": "cyan", "finished": "green", "interrupted": "yellow"} | dict.fromkeys(
    ("failed", "damaged", "changed"), "red"
)
EXAMPLES = """\
A key is a column of the table, a metric (val/loss), an option group (attn), a key of the configuration (optimizer.lr)
or a fact about the run (device, code, threads); --json shows all keys. A run that was killed counts as interrupted.

examples:
  python -m tinyllm.runs outputs --sort val/bpb --limit 10
  python -m tinyllm.runs --where attn=mla 'optimizer.lr<1e-3' status=finished --columns run,val/bpb,optimizer.lr
  python -m tinyllm.runs --diff outputs/a outputs/b
"""


def main() -> None:
    """Entry point of ``tinyllm-runs``."""
    answer(parse_flags, "tinyllm.programs.runs:work")


def parse_flags() -> argparse.Namespace:
    """The flags of this process.

    Raises:
        UserError: an unknown flag or a wrong value.
    """
    parser = Flags("runs", description="List, filter, sort and compare run directories.", epilog=EXAMPLES)
    searched = "folders to search; default: outputs"
    parser.add_argument("paths", nargs="*", type=Path, default=[Path("outputs")], help=searched)
    where = "show only runs that meet every condition, with one of the operators = != < <= > >= ~ (contains)"
    parser.add_argument("--where", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=where)
    parser.add_argument("--sort", default="age", metavar="KEY", help="sort by this key; default: age, newest first")
    parser.add_argument("--reverse", action="store_true", help="reverse the order")
    parser.add_argument("--columns", metavar="KEY,KEY", help="columns to show")
    parser.add_argument("--limit", type=int, metavar="N", help="show the first N runs")
    parser.add_argument("--diff", nargs=2, type=Path, metavar=("A", "B"), help="show how two runs differ")
    parser.add_argument("--check", action="store_true", help="find files changed after their run ended")
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--csv", action="store_true", help="print CSV, with numbers in full precision")
    formats.add_argument("--json", action="store_true", help="print every known value of each run")
    return parser.parse_args()


def work(flags: argparse.Namespace) -> int:
    """List runs, or show how two of them differ. Returns the exit code."""
    return _diff(flags) if flags.diff else _list(flags)


def _list(flags: argparse.Namespace) -> int:
    if flags.limit is not None and flags.limit < 1:
        raise UserError("nothing would be shown", key="--limit", value=flags.limit, hint="at least 1")
    conditions = [parse_condition(text) for text in flags.where]
    columns = list(COLUMNS) if flags.columns is None else [name.strip() for name in flags.columns.split(",")]
    runs = find_runs(flags.paths, check=flags.check)
    check_keys([condition.key for condition in conditions], runs, flag="--where")
    check_keys([flags.sort], runs, flag="--sort")
    check_keys([] if flags.columns is None else columns, runs, flag="--columns")
    matching = [run for run in runs if all(condition.matches(run) for condition in conditions)]
    shown = in_order(matching, flags.sort, reverse=flags.reverse)[: flags.limit]
    if flags.json:
        print(json.dumps([run.everything() for run in shown], default=str))
    elif flags.csv:
        print(csv_text(columns, [[run.get(key) for key in columns] for run in shown]), end="")
    elif shown:
        _show_runs(shown, columns, all_columns=flags.columns is not None)
    else:
        print(f"none of {len(runs)} runs matches" if runs else "no runs")
    return 0


def _show_runs(runs: Sequence[ListedRun], columns: Sequence[str], *, all_columns: bool) -> None:
    common: dict[str, Any] = {}
    if not all_columns:
        columns = [key for key in columns if any(run.get(key) is not None for run in runs)]
        if len(runs) > 1:
            values = {key: {str(run.get(key)) for run in runs} for key in columns if key in SHARED}
            common = {key: min(different) for key, different in values.items() if len(different) == 1}
        columns = [key for key in columns if key not in common]
    numbers = {key for key in columns if any(isinstance(run.get(key), int | float) for run in runs)}
    headings = [Column(name=key, right=key in numbers, styles=STYLES if key == "status" else {}) for key in columns]
    Table(columns=headings, rows=[[_cell(run, key) for key in columns] for run in runs]).show()
    if common:
        print(escape_control("all: " + ", ".join(f"{key}={value}" for key, value in common.items())))


def _cell(run: ListedRun, key: str) -> str:
    value = run.get(key)
    if value is None:
        return ""
    if key == "run":
        return shown_path(run.path)
    if key == "age":
        return duration(value)
    if key == "step" and run.get("max_steps"):
        return f"{value}/{run.get('max_steps')}"
    if isinstance(value, int) and "parameters" in key:
        return short(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4f}" if abs(value) >= 0.01 else f"{value:.4g}"
    return " ".join(str(value).split())


def _diff(flags: argparse.Namespace) -> int:
    first, second = (ListedRun(path, check=flags.check) for path in flags.diff)
    for run in (first, second):
        if run.get("status") == DAMAGED:
            raise UserError("the run cannot be compared", file=run.path, hint=run.get("note"))
    sections = differences(first, second)
    if flags.json:
        print(json.dumps({name: {key: list(pair) for key, pair in rows.items()} for name, rows in sections.items()}))
    elif flags.csv:
        rows = [[name, key, *pair] for name, entries in sections.items() for key, pair in entries.items()]
        print(csv_text(["section", "key", *map(str, flags.diff)], rows), end="")
    else:
        _show_differences(sections, flags.diff)
    return 0


def differences(first: ListedRun, second: ListedRun) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Settings and origins in which two runs differ, and the final metrics of both, as pairs by section and key."""
    metrics = {key: None for run in (first, second) for key in run.values if key in TOTALS or "/" in key}
    return {
        "configuration": differing(compared_settings(first.config), compared_settings(second.config)),
        "made by": differing(origins(first.facts), origins(second.facts)),
        "metrics": {key: (first.get(key), second.get(key)) for key in metrics},
    }


def _show_differences(sections: Mapping[str, Mapping[str, tuple[Any, Any]]], paths: Sequence[Path]) -> None:
    for title, rows in sections.items():
        if not rows:
            print(f"{title}: the same")
            continue
        numbers = title == "metrics"
        columns = [Column(name=title), *(Column(name=shown_path(path), right=numbers) for path in paths)]
        cells = [[key, *(_shown(value) for value in pair)] for key, pair in rows.items()]
        if numbers:
            columns.append(Column(name="difference", right=True))
            cells = [[*row, _change(*pair)] for row, pair in zip(cells, rows.values(), strict=True)]
        Table(columns=columns, rows=cells).show()
        print()


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text[:12] if len(text) == 64 else text  # a sha256


def _change(first: Any, second: Any) -> str:
    if not isinstance(first, int | float) or not isinstance(second, int | float):
        return ""
    return f"{second - first:+.6g}"
