"""The comparisons below the outputs: their plan, how far they are, and their report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyllm.errors import UserError
from tinyllm.runs.listing import folders_below
from tinyllm.studies.compare.plan import PLAN, StudyPlan
from tinyllm.studies.compare.runner import STUDY, is_study
from tinyllm.studio.catalogue import RunRow, identifier
from tinyllm.studio.comparison import read_plan
from tinyllm.utils.files import read_json, read_text
from tinyllm.utils.locks import is_held
from tinyllm.utils.text import escape_control

REPORT = "report.html"
LOCK = ".lock"
LARGEST_REPORT = 64 << 20
RUNNING, FINISHED, STOPPED = "running", "finished", "stopped"


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """What is known of a comparison."""

    id: str
    """Its path below the outputs, safe to show."""
    path: Path
    plan: StudyPlan | None
    """None: of a version without ``plan.json``."""
    status: str
    """running, finished, or stopped: nobody works on it, and there is no report of what is planned."""
    updated: float
    has_report: bool

    @property
    def question(self) -> str:
        """What the comparison is to find out."""
        return self.id if self.plan is None else escape_control(self.plan.question)


def studies(folder: Path) -> list[StudyRow]:
    """The comparisons below a folder, the newest first."""
    found = []
    for path, is_run in folders_below(folder):
        if not is_run and ((path / PLAN).is_file() or is_study(path / STUDY)):
            found.append(study_row(path, folder))
    return sorted(found, key=lambda row: (row.updated, row.id), reverse=True)


def study_row(path: Path, folder: Path) -> StudyRow:
    """What is known of the comparison in a directory."""
    plan_file, study_file, report = path / PLAN, path / STUDY, path / REPORT
    try:
        plan = read_plan(read_json(plan_file)) if plan_file.is_file() else None
    except UserError:
        plan = None
    times = [file.stat().st_mtime for file in (plan_file, study_file, report) if file.is_file()]
    has_report = report.is_file() and study_file.is_file()
    status = FINISHED if has_report and report.stat().st_mtime >= plan_file_time(plan_file) else STOPPED
    return StudyRow(
        id=identifier(path, folder),
        path=path,
        plan=plan,
        status=RUNNING if is_held(path / LOCK) else status,
        updated=max(times, default=0.0),
        has_report=has_report,
    )


def plan_file_time(file: Path) -> float:
    """When a plan was written; 0 without one."""
    return file.stat().st_mtime if file.is_file() else 0.0


def find_study(folder: Path, name: str) -> StudyRow | None:
    """The comparison with this id; None if there is none below the folder."""
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve()) and identifier(path, folder) == name
        is_there = inside and ((path / PLAN).is_file() or (path / STUDY).is_file())
    except (ValueError, OSError):  # a name that no file can have
        return None
    return study_row(path, folder) if is_there else None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The runs of an arm."""

    arm: str
    runs: Sequence[tuple[int, RunRow | None]]
    """Each seed with its run; None: it has not started."""

    @property
    def finished(self) -> int:
        """How many runs have finished."""
        return sum(row is not None and row.status == FINISHED for _, row in self.runs)

    @property
    def share(self) -> float:
        """The trained share of all its steps, from 0 to 1."""
        shares = [_share(row) for _, row in self.runs]
        return min(1.0, sum(shares) / len(shares)) if shares else 0.0


def _share(row: RunRow | None) -> float:
    if row is None or not row.max_steps:
        return 0.0
    return 1.0 if row.status == FINISHED else row.step / row.max_steps


def progress(study: StudyRow, rows: Mapping[str, RunRow]) -> list[Progress]:
    """How far each arm is.

    Args:
        rows: all runs by id.
    """
    if study.plan is None:
        return []
    by_arm: dict[str, list[tuple[int, RunRow | None]]] = {arm.name: [] for arm in study.plan.arms}
    for planned in study.plan.runs:
        by_arm.setdefault(planned.arm, []).append((planned.seed, rows.get(f"{study.id}/{planned.path}")))
    return [Progress(arm=escape_control(arm), runs=runs) for arm, runs in by_arm.items()]


def report_of(folder: Path, name: str) -> str | None:
    """The report of a comparison as HTML; None if there is none of this id, or it is not below the folder."""
    study = find_study(folder, name)
    if study is None or not study.has_report:
        return None
    file = study.path / REPORT
    if file.is_symlink() or not file.resolve().is_relative_to(folder.resolve()):
        return None
    try:
        return read_text(file, largest=LARGEST_REPORT)
    except UserError:
        return None
