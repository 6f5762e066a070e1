"""``python -m tinyllm.probe``: train every arm on every task, show a table of accuracies."""

import json
import shutil
from pathlib import Path

from omegaconf import DictConfig

from tinyllm.config.cli.main import Invocation
from tinyllm.config.compose import compose
from tinyllm.config.quoting import unquoted
from tinyllm.errors import UserError
from tinyllm.studies.compare.arms import ArmSet, ArmSpec
from tinyllm.studies.probes.arms import check_used
from tinyllm.studies.probes.results import ResultCache
from tinyllm.studies.probes.table import Row, accuracy_table, write_csv
from tinyllm.studies.probes.trials import Trials
from tinyllm.utils.text import say, silent

FAILED = 1
"""Exit code if an arm's training run diverged."""


def probe(cfg: DictConfig, invocation: Invocation) -> int:
    """Probe every arm and show the table; returns the exit code.

    Raises:
        UserError: a setting is wrong; all arms are checked before anything is trained.
    """
    arm_set: ArmSet = invocation.rewrite_result
    check_used(arm_set.settings_of(arm_set.specs[0]))
    tell = silent if invocation.json else say
    arms = [(spec, _trials(spec, arm_set, invocation)) for spec in arm_set.specs]
    cache = ResultCache(Path(cfg.out))
    rows: list[Row] = []
    failed = False
    for spec, trials in arms:
        row = Row(arm=spec.name, settings=list(spec.settings), probes=[])
        rows.append(row)
        try:
            for result, cached in trials.run(cache):
                row.probes.append(result)
                tell(f"{spec.name}, {result.line()}{', already known' if cached else ''}")
        except UserError as error:  # the training run diverged; the remaining arms are still probed
            failed = True
            tell(f"{spec.name}: {error}")
    write_csv(cache.path / "probes.csv", rows)
    if invocation.json:
        print(json.dumps({"arms": [row.as_dict() for row in rows]}))
    else:
        _show(rows)
    return FAILED if failed else 0


def _show(rows: list[Row]) -> None:
    """Print the table; as plain lines where a drawn one would not fit, because folded intervals are unreadable."""
    table = accuracy_table(rows)
    if table.drawn_width > shutil.get_terminal_size().columns:
        print("\n".join(table.lines()))
    else:
        table.show()


def _trials(spec: ArmSpec, arm_set: ArmSet, invocation: Invocation) -> Trials:
    """The checked trials of an arm. With several arms, an error names the arm.

    Raises:
        UserError: the arm's settings do not fit together.
    """
    try:
        cfg = compose(*unquoted(arm_set.settings_of(spec)), program="probe", config_dir=invocation.config_dir)
        return Trials(cfg, typed=invocation.typed, allow=invocation.allow)
    except UserError as error:
        hint = f"{error.hint}; arm {spec.name}" if len(arm_set.specs) > 1 else error.hint
        raise UserError(error.what, key=error.key, value=error.value, file=error.file, hint=hint) from error
