"""The plan of a pipeline as a table, and where its results come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinyllm.runs.checkpoint import steps_in
from tinyllm.runs.facts import read_run_json
from tinyllm.runs.layout import CHECKPOINTS
from tinyllm.studies.pipeline.plan import Chain, PlannedStage
from tinyllm.studies.pipeline.running import has_run
from tinyllm.utils.tables import Column, Table
from tinyllm.utils.text import short

FACTS = ("versions", "machine", "instructions", "threads", "commit", "code")
"""What is shown of the first run's origin."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will run, and what it costs: as JSON and as a table."""

    content: list[dict[str, Any]]

    def show(self) -> None:
        """Print the table, and the sum of what is left."""
        several = len({row["seed"] for row in self.content}) > 1
        names = [
            "stage",
            *(["seed"] if several else []),
            "program",
            "from",
            "steps",
            "tokens",
            "FLOPs",
            "state",
            "directory",
        ]
        numbers = ("seed", "steps", "tokens", "FLOPs")
        rows = [[_shown(row[name]) for name in names] for row in self.content]
        Table(columns=[Column(name=name, right=name in numbers) for name in names], rows=rows).show()
        left = [row for row in self.content if row["state"] != "finished"]
        flops = sum(row["FLOPs"] or 0 for row in left)
        print(f"{len(left)} of {len(self.content)} stages to run, at most {short(flops)} FLOPs of training")


def plan_table(chains: Sequence[Chain]) -> Plan:
    """The plan of every stage with every seed."""
    return Plan(content=[_row(stage) for chain in chains for stage in chain.stages])


def _row(stage: PlannedStage) -> dict[str, Any]:
    cost = stage.cost
    return {
        "stage": stage.name,
        "seed": stage.seed,
        "program": stage.stage.program,
        "from": stage.stage.init_from,
        "steps": cost.steps if cost else None,
        "tokens": cost.tokens if cost else None,
        "FLOPs": cost.flops if cost else None,
        "state": state_of(stage),
        "directory": str(stage.path),
    }


def state_of(stage: PlannedStage) -> str:
    """``finished``, ``to do``, or the step from which it goes on."""
    if has_run(stage):
        return "finished"
    steps = steps_in(stage.path / CHECKPOINTS) if stage.trains else []
    return f"goes on at step {max(steps)}" if steps else "to do"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else short(value) if value >= 10**5 else f"{value:,}"


def provenance_of(chains: Sequence[Chain]) -> dict[str, Any]:
    """Versions, machine, commit and code of the first run, and the data of each stage."""
    trained = [stage for stage in chains[0].stages if stage.trains]
    facts = read_run_json(trained[0].path)
    data = {stage.name: (read_run_json(stage.path).get("facts") or {}).get("data") for stage in trained}
    return {name: facts.get(name) for name in FACTS} | {"data": data}
