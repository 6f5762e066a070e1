"""``python -m tinyllm.runs outputs --sort val/bpb``: the run directories there are, in a table."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyllm.runs.listing import Listed

COLUMNS = (
    *("run", "status", "model", "attn", "ffn", "moe", "optimizer", "dataset", "seed"),
    *("parameters", "step", "val/bpb", "best_val_loss", "tokens/s", "age", "note"),
)
AXES = ("step", "tokens", "flops", "seconds", "best_val_loss")
"""Figures at the end of a run that are no metrics of one step."""
SHARED = ("model", "attn", "ffn", "moe", "optimizer", "dataset", "seed")
"""Columns that are left out where all runs have the same there; a line says so."""
STYLES = {"running": "cyan", "finished": "green", "interrupted": "yellow"} | dict.fromkeys(
    ("failed", "damaged", "changed"), "red"
)
EXAMPLES = """\
A key is one of the table's, a metric (val/loss), an option's group (attn), a key of the configuration (optimizer.lr)
or a fact of the run (device, code, threads); --json shows all there are. A run that was killed is interrupted.

examples:
  python -m tinyllm.runs outputs --sort val/bpb --limit 10
  python -m tinyllm.runs --where attn=mla 'optimizer.lr<1e-3' status=finished --columns run,val/bpb,optimizer.lr
  python -m tinyllm.runs --diff outputs/a outputs/b
"""


def main() -> None:
    """Entry point of ``tinyllm-runs``."""
    from tinyllm.config.cli.flags import Flags, answer

    def work() -> int:
        flags = Flags("runs", description="List, filter, sort and compare run directories.", epilog=EXAMPLES)
        flags.add_argument("paths", nargs="*", type=Path, default=[Path("outputs")], help="where to look: outputs")
        flags.add_argument(
            "--where", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="only such runs"
        )
        flags.add_argument("--sort", default="age", metavar="KEY", help="order; default: age, the newest first")
        flags.add_argument("--reverse", action="store_true", help="the other way round")
        flags.add_argument("--columns", metavar="KEY,KEY", help="what to show")
        flags.add_argument("--limit", type=int, metavar="N", help="show the first N")
        flags.add_argument("--diff", nargs=2, type=Path, metavar=("A", "B"), help="in what two run directories differ")
        flags.add_argument("--check", action="store_true", help="find files that were changed after a run's end")
        written = flags.add_mutually_exclusive_group()
        written.add_argument("--csv", action="store_true", help="full digits, for other programs")
        written.add_argument("--json", action="store_true", help="everything that is known of each")
        asked = flags.parse_args()
        return _diff(asked) if asked.diff else _list(asked)

    answer(work)


def _list(asked: argparse.Namespace) -> int:
    import json

    from tinyllm.errors import UserError
    from tinyllm.runs.listing import find_runs
    from tinyllm.runs.query import check_keys, condition, ordered

    if asked.limit is not None and asked.limit < 1:
        raise UserError("nothing would be shown", key="--limit", value=asked.limit, hint="at least 1")
    conditions = [condition(text) for text in asked.where]
    columns = list(COLUMNS) if asked.columns is None else [one.strip() for one in asked.columns.split(",")]
    found = find_runs(asked.paths, check=asked.check)
    check_keys([one.key for one in conditions], found, flag="--where")
    check_keys([asked.sort], found, flag="--sort")
    check_keys([] if asked.columns is None else columns, found, flag="--columns")
    chosen = [run for run in found if all(one.holds(run) for one in conditions)]
    chosen = ordered(chosen, asked.sort, reverse=asked.reverse)[: asked.limit]
    if asked.json:
        print(json.dumps([run.everything() for run in chosen], default=str))
    elif asked.csv:
        _csv(columns, [[run.get(key) for key in columns] for run in chosen])
    else:
        _table(chosen, columns, chosen_by_hand=asked.columns is not None)
        if not chosen:
            print(f"{len(found)} runs, none of them so" if found else "no runs")
    return 0


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from tinyllm.utils.tables import csv_text

    print(csv_text(columns, rows), end="")


def _table(runs: "Sequence[Listed]", columns: Sequence[str], *, chosen_by_hand: bool) -> None:
    from tinyllm.utils.tables import Column, Table
    from tinyllm.utils.text import plain

    if not runs:
        return
    common: dict[str, Any] = {}
    if not chosen_by_hand:
        columns = [key for key in columns if any(run.get(key) is not None for run in runs)]
        if len(runs) > 1:
            values = {key: {str(run.get(key)) for run in runs} for key in columns if key in SHARED}
            common = {key: min(found) for key, found in values.items() if len(found) == 1}
        columns = [key for key in columns if key not in common]
    numbers = {key for key in columns if any(isinstance(run.get(key), int | float) for run in runs)}
    shown = [Column(name=key, right=key in numbers, styles=STYLES if key == "status" else {}) for key in columns]
    Table(columns=shown, rows=[[cell(run, key) for key in columns] for run in runs]).show()
    if common:
        print(plain("all: " + ", ".join(f"{key}={value}" for key, value in common.items())))


def cell(run: "Listed", key: str) -> str:
    """A value as a person reads it."""
    from tinyllm.utils.text import duration, plain, short, shown_path

    value = run.get(key)
    if value is None:
        return ""
    if key == "run":
        return plain(shown_path(run.path))
    if key == "age":
        return duration(value)
    if key == "step" and run.get("max_steps"):
        return f"{value}/{run.get('max_steps')}"
    if isinstance(value, int) and "parameters" in key:
        return short(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4f}" if abs(value) >= 0.01 else f"{value:.4g}"
    return plain(" ".join(str(value).split()))


def _diff(asked: argparse.Namespace) -> int:
    import json

    from tinyllm.errors import UserError
    from tinyllm.runs.listing import DAMAGED, Listed

    pair = [Listed(path, check=asked.check) for path in asked.diff]
    for run in pair:
        if run.values["status"] == DAMAGED:
            raise UserError("no run that can be compared", file=run.path, hint=run.values.get("note", ""))
    sections = differences(*pair)
    if asked.json:
        print(json.dumps({name: {key: list(both) for key, both in rows.items()} for name, rows in sections.items()}))
    elif asked.csv:
        rows = [[name, key, *both] for name, entries in sections.items() for key, both in entries.items()]
        _csv(["section", "key", *map(str, asked.diff)], rows)
    else:
        _show(sections, asked.diff)
    return 0


def differences(one: "Listed", other: "Listed") -> dict[str, dict[str, tuple[Any, Any]]]:
    """The configuration and the origins in which two runs differ, and the metrics of both at their end."""
    from tinyllm.runs.facts import differing, of_run, origins

    metrics = {key: None for run in (one, other) for key in run.values if key in AXES or "/" in key}
    return {
        "configuration": differing(of_run(one.config), of_run(other.config)),
        "made by": differing(origins(one.facts), origins(other.facts)),
        "metrics": {key: (one.get(key), other.get(key)) for key in metrics},
    }


def _show(sections: Mapping[str, Mapping[str, tuple[Any, Any]]], paths: Sequence[Path]) -> None:
    from tinyllm.utils.tables import Column, Table
    from tinyllm.utils.text import shown_path

    names = [shown_path(path) for path in paths]
    for title, rows in sections.items():
        if not rows:
            print(f"{title}: the same")
            continue
        numbers = title == "metrics"
        columns = [Column(name=title), *(Column(name=name, right=numbers) for name in names)]
        lines = [[key, *(_text(value) for value in both)] for key, both in rows.items()]
        if numbers:
            columns.append(Column(name="difference", right=True))
            lines = [[*line, _change(*both)] for line, both in zip(lines, rows.values(), strict=True)]
        Table(columns=columns, rows=lines).show()
        print()


def _text(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text[:12] if len(text) == 64 else text


def _change(one: Any, other: Any) -> str:
    """The second value less the first, where both are numbers."""
    if not isinstance(one, int | float) or not isinstance(other, int | float):
        return ""
    return f"{other - one:+.6g}"
