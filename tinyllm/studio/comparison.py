"""A comparison that is being put together: its arms and settings as typed, and its plan from the program itself."""

import asyncio
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyllm.config import schema
from tinyllm.config.cli.help import first_sentence
from tinyllm.config.cli.main import ERROR_FILE
from tinyllm.config.option_docs import read_program
from tinyllm.errors import UserError
from tinyllm.studies.compare.arms import OWN_KEYS
from tinyllm.studies.compare.plan import PlannedArm, PlannedRun, StudyPlan
from tinyllm.studio.form import Draft, Row
from tinyllm.studio.guard import check_arguments
from tinyllm.studio.program import PASSWORD, Settings
from tinyllm.utils.environment import without_run_names
from tinyllm.utils.files import parse_json
from tinyllm.utils.text import command

BUDGET = "budget"
FRONT = ("match", BUDGET, "budget.amount", "seeds", "metric", "effect", "evaluations")
"""Keys that are shown without asking, in this order."""
ELSEWHERE = ("out", "dry_run", "study")
"""Keys that the page itself sets, or that have no place beside arms put together here."""
OFFLINE = "HF_HUB_OFFLINE"
"""Environment variable: the hub is not asked."""
PLAN_S = 600.0
"""Seconds after which a plan is given up; it prepares the data, which may be large."""


@dataclass(kw_only=True)
class Varied:
    """A key or group that tells the arms apart, and its values as typed, separated by commas."""

    key: str = ""
    values: str = ""


@dataclass(kw_only=True)
class Comparison:
    """What is filled in on Compare. The arms are all combinations of the varied values."""

    varied: list[Varied] = field(default_factory=lambda: [Varied()])
    shared: str = ""
    """Settings of all arms, as typed in a shell."""
    draft: Draft = field(default_factory=Draft)
    """The settings of the comparison itself."""
    planned: tuple[list[str], StudyPlan] | None = None
    """The last plan, and the settings that it is the plan of."""

    @property
    def has_arms(self) -> bool:
        """Whether there is something to compare."""
        return any(each.key.strip() and each.values.strip() for each in self.varied)

    def arguments(self) -> list[str]:
        """The settings of the command line.

        Raises:
            UserError: an arm without key or values; shared settings that a shell would not read.
        """
        arms = []
        for each in self.varied:
            key, values = each.key.strip(), ",".join(filter(None, (part.strip() for part in each.values.split(","))))
            if not key and not values:
                continue
            if not key or not values:
                hint = "give a key or group, and its values separated by commas"
                raise UserError("what differs between the arms is not complete", key=key or None, hint=hint)
            arms.append(f"{key}={values}")
        try:
            shared = shlex.split(self.shared)
        except ValueError as error:
            raise UserError("the shared settings cannot be read", hint=f"{error}; close the quotes") from error
        return [*shared, *arms, *self.draft.arguments]

    def command(self, settings: Settings, *more: str) -> str:
        """The command that carries out the comparison, quoted where a shell needs it."""
        flags = [] if settings.config_dir is None else ["--config-dir", str(settings.config_dir)]
        return command("compare", *flags, *self.arguments(), *more)


def comparison_rows(config_dir: Path | None = None) -> list[Row]:
    """The keys of the comparison itself with their descriptions in ``conf/compare.yaml``, the usual ones first."""
    program = read_program("compare", more=[] if config_dir is None else [config_dir])
    rows = [
        Row(key=key.path, section=BUDGET, meaning=key.meaning, default=key.default)
        for key in program.keys.values()
        if key.path in OWN_KEYS and key.path not in ELSEWHERE
    ]
    for group in program.groups:
        if group.name == BUDGET:
            options = tuple((option.name, first_sentence(option.meaning)) for option in group.options)
            rows.append(Row(key=BUDGET, section=BUDGET, meaning="", default=group.default or "", options=options))
            keys = {key.path: key for option in group.options for key in option.keys.values()}
            rows += [
                Row(key=f"{BUDGET}.{path}", section=BUDGET, meaning=key.meaning, default=key.default)
                for path, key in keys.items()
            ]
    return sorted(rows, key=lambda row: FRONT.index(row.key) if row.key in FRONT else len(FRONT))


def comparison_words() -> dict[str, list[str]]:
    """The keys of the comparison that hold one of some words."""
    known = {key: entry.metadata for key, entry in schema.fields_of(schema.SCHEMAS["compare"]) if key in OWN_KEYS}
    free = ("at_least", "above", "below", "at_most")  # a number may stand there as well
    return {
        key: list(limits["choices"])
        for key, limits in known.items()
        if limits.get("choices") and all(limits.get(name) is None for name in free)
    }


async def plan_of(arguments: Sequence[str], settings: Settings, *, fetch: bool = True) -> StudyPlan:
    """The plan of a comparison, by ``compare dry_run=true`` in a process of its own. Prepares the data.

    Cancelling ends the process.

    Args:
        fetch: whether data that is not on this machine is fetched.

    Raises:
        UserError: in the words of the program.
    """
    check_arguments(arguments, settings)
    flags = [] if settings.config_dir is None else ["--config-dir", str(settings.config_dir)]
    with tempfile.TemporaryDirectory(prefix="tinyllm-plan-") as folder:
        error_file = Path(folder) / "error"
        environ = {name: value for name, value in without_run_names(os.environ).items() if name != PASSWORD}
        environ |= {} if fetch else {OFFLINE: "1"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tinyllm.compare", *flags, "--json", *arguments, "dry_run=true"),
            env={**environ, ERROR_FILE: str(error_file)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), PLAN_S)
        except TimeoutError:
            raise UserError(
                "the plan takes too long", hint="prepare the data first: python -m tinyllm.prepare"
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            lines = err.decode(errors="replace").strip().splitlines()
            text = error_file.read_text(encoding="utf-8", errors="replace") if error_file.is_file() else ""
            text = text.strip().removeprefix("error: ") or (lines[-1] if lines else "compare failed")
            if not fetch and OFFLINE in text:
                raise UserError("the data is not on this machine", hint='"Show the plan" fetches it')
            raise UserError(text)
    # Notes of the preparation may precede the plan, which is one line.
    plan = read_plan(parse_json(out.strip().rpartition(b"\n")[2]))
    if plan is None:
        raise UserError("compare printed no plan", hint="see its output in a terminal: dry_run=true")
    return plan


def read_plan(content: Any) -> StudyPlan | None:
    """A plan as JSON holds it; None for anything else."""
    try:
        arms = [PlannedArm(**arm) for arm in content["arms"]]
        runs = [PlannedRun(**each) for each in content["runs"]]
        plan = StudyPlan(**{**content, "arms": arms, "runs": runs})
    except (TypeError, KeyError):
        return None
    texts = [plan.question, plan.command, plan.directory, plan.metric, plan.reference, *(arm.name for arm in arms)]
    texts += [text for each in runs for text in (each.arm, each.path)]
    return plan if all(isinstance(text, str) for text in texts) else None


def quoted(arguments: Sequence[str]) -> str:
    """Settings as one line that a shell would read."""
    return shlex.join(arguments)
