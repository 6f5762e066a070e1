"""A report of a study with everything in it, hostile names included, shows exactly what the study holds."""

import csv
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import made_study as made
from tests.support import read_report as read
from tinyllm.studies.compare.results import Study
from tinyllm.studies.report import tables, write_report
from tinyllm.studies.report.summary import summaries
from tinyllm.utils.text import escape_control

EVIL = 'gqa <script>alert(1)</script> & "q" | `x` *y* $z$ [a](b) {{ c }} </svg>'
ERROR = "RuntimeError: <img src=x onerror=alert(2)>\x1b[31m | broken"


def odd() -> Study:
    """Four arms: the reference, one with special characters in its name, a mixture, and one that never finished."""
    study = made.study(arms=4)
    names = {"gqa": EVIL, "mqa": "mixture", "mla": "lost"}
    arms = [replace(arm, name=names.get(arm.name, arm.name)) for arm in study.arms]
    account = replace(arms[2].account, active_parameters=700_001)
    arms[2] = replace(arms[2], account=account, decode_tokens_per_s=None, probes={}, trials=arms[2].trials[:2])
    runs = [replace(run, arm=names.get(run.arm, run.arm)) for run in study.runs]
    runs = [run if run.arm != "lost" else made.failed("lost", 3, run.seed, ERROR) for run in runs]
    runs[4] = made.failed(EVIL, 1, 2, ERROR)
    return replace(
        study,
        question="Which one?\n<b>bold</b>",
        arms=arms,
        runs=runs,
        differences=[made.difference(name, "mha", runs) for name in (EVIL, "mixture")],
        verdicts=[f"{EVIL} against mha: no difference above 0.03 bpb can be seen with 2 seeds", "lost: nothing"],
        notes=[f"lost, seed 1, failed and is left out: {ERROR}"],
    )


STUDY = odd()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the report."""
    directory = tmp_path_factory.mktemp("study")
    write_report(STUDY, directory)
    return directory


@pytest.fixture(scope="module")
def page(written: Path) -> read.Page:
    return read.Page((written / "report.html").read_text(encoding="utf-8"))


def test_files_of_a_report(written: Path) -> None:
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    tables = {f"{name}.csv" for name in ("arms", "runs", "differences", "curves", "tuning")}
    pictures = {"differences", "seeds", "curves_tokens", "curves_flops", "curves_seconds", "tuning_optimizer_lr"}
    pictures |= {"pareto_flops", "pareto_kv_bytes", "pareto_latency"}
    assert names == tables | {"report.html", "report.md", ".report.json"} | {f"figures/{name}.svg" for name in pictures}


def test_page_is_self_contained(page: read.Page) -> None:
    """No attribute or style refers to another file or host, and the content security policy allows none."""
    places = {"href", "xlink:href", "src", "srcset", "data", "poster", "action", "formaction", "background", "ping"}
    targets = [value for _, name, value in page.attributes if name in places]
    assert targets and all(target.startswith(("#", "data:,")) for target in targets)
    assert "://" not in page.text and "@import" not in page.text
    assert set(re.findall(r"url\((.)", page.text)) == {"#"}
    assert not {"iframe", "object", "embed", "img", "base", "form", "video", "audio"} & set(page.tags)
    [policy] = [value for _, name, value in page.attributes if name == "content" and "default-src" in value]
    assert policy.startswith("default-src 'none';") and "script-src 'sha256-" in policy
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)


def test_names_and_errors_are_shown_as_text(page: read.Page, written: Path) -> None:
    assert page.tags.count("script") == 1 and "b" not in page.tags
    assert EVIL in page.shown and "Which one? <b>bold</b>" in page.shown
    assert "<img src=x onerror=alert(2)>\\x1b[31m | broken" in page.shown
    assert [name for _, name, _ in page.attributes if name.startswith("on")] == []
    for path in written.rglob("*.*"):
        assert "\x1b" not in path.read_text(encoding="utf-8") or path.name == "runs.csv"


def expected_arm(name: str) -> dict[str, str]:
    """The row of the arms table, computed independently."""
    arm = next(arm for arm in STUDY.arms if arm.name == name)
    runs = [run for run in STUDY.runs if run.arm == name and run.status == "finished"]
    values = [run.value for run in runs if run.value is not None]
    found = next((difference for difference in STUDY.differences if difference.arm == name), None)
    row = {
        "seeds": str(len(runs)),
        "parameters": f"{arm.account.parameters:,}",
        "active": f"{arm.account.active_parameters:,}",
        "FLOPs per token": f"{arm.account.flops_per_token:,}",
        "KV bytes per token": f"{arm.account.kv_bytes_per_token:,}",
        "decode tokens/s": f"{arm.decode_tokens_per_s:.0f}" if arm.decode_tokens_per_s else "–",
        "val bpb ± sd": "–",
        "tokens/s": "–",
        "peak memory": "–",
        "difference, 95\xa0%": "reference" if name == "mha" else "–",
        "p, corrected": "" if name == "mha" else "–",
    }
    if values:
        row["val bpb ± sd"] = f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
        row["tokens/s"] = f"{statistics.median(run.tokens_per_s or 0 for run in runs):,.0f}"
        row["peak memory"] = f"{max(run.peak_memory_bytes or 0 for run in runs) / 1e6:.0f} MB"
    if found and found.low is not None and found.high is not None and found.p_corrected is not None:
        row["difference, 95\xa0%"] = f"{found.mean:+.4f} ± {found.high - found.mean:.4f}".replace("-", "−")
        row["p, corrected"] = f"{found.p_corrected:.3f}"
    return row


@pytest.mark.parametrize("name", ["mha", EVIL, "mixture", "lost"])
def test_every_number_of_the_arms_table_is_the_studys(page: read.Page, name: str) -> None:
    assert page.table("arms")[name] == expected_arm(name)


def test_seeds_and_their_differences(page: read.Page) -> None:
    values = {(run.arm, run.seed): run.value for run in STUDY.runs if run.value is not None}
    rows = page.table("seeds")
    for arm in STUDY.arms:
        for seed in STUDY.seeds:
            text = rows[arm.name][f"seed {seed}"]
            if (arm.name, seed) not in values:
                assert text == "–"
                continue
            shown = f"{values[arm.name, seed]:.4f}"
            if arm.name != "mha":
                shown += f" ({values[arm.name, seed] - values['mha', seed]:+.4f})".replace("-", "−")
            assert text == shown


def test_tables_of_matching_tuning_probes_and_statistics(page: read.Page) -> None:
    matched = page.table("matching")["mixture"]
    assert (matched["solved"], matched["parameters"], matched["mismatch"]) == ("ffn.d_ff=528", "1,044,096", "+0.05 %")
    tuned = page.table("tuning")
    assert tuned["mha"]["at the edge of the tried range"] == "yes: optimizer.lr"
    assert (tuned["mixture"]["trials"], tuned["lost"]["trials"]) == ("2", "3")
    assert "did not have the same number of trials" in page.shown
    assert page.table("probes")["mha"] == {"recall": "98.0 %", "copying": "75.0 %"}
    assert page.table("probes")["mixture"] == {"recall": "–", "copying": "–"}
    difference = STUDY.differences[1]
    assert difference.sd is not None and difference.p is not None
    row = page.table("statistics")["mixture"]
    assert (row["pairs"], row["mean"], row["sd"]) == ("3", f"{difference.mean:+.4f}", f"{difference.sd:.4f}")
    assert (row["p"], row["seeds needed"]) == (f"{difference.p:.3f}", "9")


def test_commands_versions_and_hashes_are_shown(page: read.Page) -> None:
    for run in STUDY.runs:
        assert run.command in page.shown and run.path in page.shown
        assert all(digest in page.shown for digest in run.sha256.values())
    assert STUDY.command in page.shown
    assert dict(row for row in page.tables["reproduce"][0][1:]) == {
        "versions tinyllm": "0.1.0",
        "versions torch": "2.13.0",
        "machine": "Linux x86_64, 2 cores",
        "commit": "8c83b30",
        "data": "5d1f7c0a",
    }


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_curves_csv_holds_the_records_to_the_last_digit(written: Path) -> None:
    rows = rows_of(written / "curves.csv")
    records = [(run.arm, run.seed, record) for run in STUDY.runs for record in run.records]
    assert len(rows) == len(records)
    for row, (arm, seed, record) in zip(rows, records, strict=True):
        assert (row.pop("arm"), int(row.pop("seed"))) == (arm, seed)
        assert {name: float(text) for name, text in row.items()} == record


def test_other_csv_files_are_not_rounded(written: Path) -> None:
    for row, run in zip(rows_of(written / "runs.csv"), STUDY.runs, strict=True):
        expected = (run.arm, str(run.seed), run.status, escape_control(run.error))
        assert (row["arm"], row["seed"], row["status"], row["error"]) == expected
        assert row["value"] == ("" if run.value is None else repr(run.value))
    for row, difference in zip(rows_of(written / "differences.csv"), STUDY.differences, strict=True):
        assert (row["arm"], row["seeds"]) == (difference.arm, " ".join(map(str, difference.seeds)))
        assert [row[key] for key in ("mean", "sd", "low", "high", "p")] == [
            repr(getattr(difference, key)) for key in ("mean", "sd", "low", "high", "p")
        ]
    for row, arm in zip(rows_of(written / "arms.csv"), STUDY.arms, strict=True):
        assert int(row["active_parameters"]) == arm.account.active_parameters
        assert float(row["mismatch"]) == arm.mismatch and int(row["solved ffn.d_ff"]) == arm.solved["ffn.d_ff"]
    trials = [(arm.name, trial) for arm in STUDY.arms for trial in arm.trials]
    for row, (name, trial) in zip(rows_of(written / "tuning.csv"), trials, strict=True):
        assert (row["arm"], float(row["value"]), float(row["optimizer.lr"])) == (
            name, trial["value"], trial["optimizer.lr"],
        )  # fmt: skip


def test_markdown_shows_the_same_as_the_page(page: read.Page, written: Path) -> None:
    text = (written / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert {f"figures/{path.name}" for path in (written / "figures").iterdir()} == set(pictures)
    tables = [table for tables in page.tables.values() for table in tables]
    assert [[len(row) for row in table if row] for table in read.markdown_rows(text)] == [
        [len(table[0]), *(len(row) for row in table)] for table in tables
    ]
    [arms] = [rows for rows in read.markdown_rows(text) if "tokens/s" in rows[0] and "active" in rows[0]]
    assert arms[2:] == page.tables["arms"][0][1:]
    prose = re.sub(r"(`{3,})bash\n.*?\n\1\n", "", text, flags=re.DOTALL)
    assert prose != text and re.search(r"(?<!\\)<(?!/?(details|summary)>)", prose) is None


def test_marks_are_at_the_positions_of_their_numbers(written: Path) -> None:
    """In a picture with a tooltip per mark, one linear scale maps all numbers to positions."""
    for name in ("differences", "seeds"):
        found = read.points((written / "figures" / f"{name}.svg").read_text(encoding="utf-8"))
        pairs = [(number(title), x) for title, (x, _) in found.items()]
        assert len(pairs) >= 7
        assert_linear(pairs, digits=1e-4)
    for name in ("curves_tokens", "pareto_flops"):
        found = read.points((written / "figures" / f"{name}.svg").read_text(encoding="utf-8"))
        assert_linear([(number(title), -y) for title, (_, y) in found.items()], digits=1e-4)


def number(title: str) -> float:
    """The first number after the colon."""
    found = re.search(r": ([+−]?[\d.]+)", title)
    assert found is not None, title
    return float(found[1].replace("−", "-"))


def assert_linear(pairs: list[tuple[float, float]], *, digits: float) -> None:
    """All pairs lie on one rising line, within the precision of the printed numbers."""
    (x0, y0), (x1, y1) = min(pairs), max(pairs)
    slope = (y1 - y0) / (x1 - x0)
    assert slope > 0
    assert [y - y0 for _, y in pairs] == pytest.approx([slope * (x - x0) for x, _ in pairs], abs=2 * slope * digits)


def test_budget_of_minutes_shows_the_minutes_trained() -> None:
    table = tables.matching_table(replace(STUDY, budget="minutes"), summaries(STUDY))
    assert table.headings[-1] == "minutes trained" and tables.matching_table(STUDY, []).headings[-1] == "FLOPs per run"
    for row, arm in zip(table.rows, STUDY.arms, strict=True):
        speeds = [run.tokens_per_s or 0 for run in STUDY.runs if run.arm == arm.name and run.value is not None]
        expected = f"{arm.tokens / statistics.median(speeds) / 60:.3g}" if speeds else "–"
        assert row[-1].text == expected
