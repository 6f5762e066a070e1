"""``python -m tinyllm.probe attn=mha,gqa,mla``: what a composition can do on synthetic tasks, in CPU minutes."""

from typing import TYPE_CHECKING

from tinyllm.utils.nested import is_within

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from omegaconf import DictConfig

    from tinyllm.config.cli.arguments import CommandLine
    from tinyllm.config.cli.main import Invocation
    from tinyllm.studies.compare.arms import ArmSet
    from tinyllm.studies.probes.probing import Trials
    from tinyllm.studies.probes.table import Row

OWN = ("tasks", "seeds", "examples", "out")
"""Keys and groups of the program itself, but for the sizes of tasks."""
PARTS = ("attn", "ffn", "moe", "pos", "norm", "layers", "parametrization", "optimizer", "schedule", "loss", "ema")
READ = (
    *("model", "seed", "debug", "hydra", *OWN, *PARTS),
    *(
        f"trainer.{name}"
        for name in (
            *("max_steps", "batch_size", "grad_accum_steps", "grad_clip", "precision", "device", "deterministic"),
            *("activation_checkpointing", "nonfinite"),
        )
    ),
)
"""What has an effect here; below these keys lie others."""
BY_TASK = ("model.vocab_size",)
"""What the task decides."""
SIZES = (
    *(f"model.{name}" for name in ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "max_seq_len")),
    *BY_TASK,
)
ANY_SIZE = ("seed", "trainer.precision", "trainer.device")
"""What means the same for a small model."""
WIDEST = 1000
"""Columns of a table, at most."""
FAILED = 1


def main() -> None:
    """Entry point of ``tinyllm-probe``."""
    from tinyllm.config.cli.main import run

    def first_arm(line: "CommandLine") -> "tuple[list[str], ArmSet]":
        arm_set = arms_of(line.settings)
        return arm_set.settings_of(arm_set.specs[0]), arm_set

    def task(cfg: "DictConfig", invocation: "Invocation") -> int:
        return probe_arms(cfg, invocation, invocation.prepared)

    run("probe", task, prepare=first_arm, several=True)


def arms_of(settings: "Sequence[str]") -> "ArmSet":
    """The arms of a command line; one without several values is one arm.

    Raises:
        UserError: a key without effect, or one that cannot differ between arms.
    """
    from tinyllm.config.quoting import unquoted
    from tinyllm.errors import UserError
    from tinyllm.studies.compare.arms import ArmSet, ArmSpec, arm_name, expand_arms, parse_overrides

    parsed = parse_overrides(settings)
    for one in parsed:
        key, typed = one.key_or_group, unquoted([str(one.input_line)])[0].partition("=")[2]
        if not is_within(key, READ) or is_within(key, BY_TASK):
            hint = "a task makes its own ids, and no run is kept; leave it out"
            raise UserError("the key has no effect here", key=key, value=typed, hint=hint)
        if one.is_sweep_override() and is_within(key, (*OWN, "seed")):
            hint = "one value, which holds for all arms; seeds=<number> repeats every arm"
            raise UserError("it cannot differ between arms", key=key, value=typed, hint=hint)
    shared, jobs = expand_arms(parsed)
    specs = tuple(ArmSpec(name=arm_name(job.swept) or "model", settings=tuple(job.swept)) for job in jobs)
    return ArmSet(shared=shared, specs=specs)


def probe_arms(cfg: "DictConfig", invocation: "Invocation", arm_set: "ArmSet") -> int:
    """Probe every arm and show the table; returns the exit code.

    Raises:
        UserError: something does not fit, told before anything trains.
    """
    import json
    from pathlib import Path

    from tinyllm.config.compose import compose
    from tinyllm.config.quoting import unquoted
    from tinyllm.errors import UserError
    from tinyllm.studies.probes.probing import Trials
    from tinyllm.studies.probes.results import Shelf
    from tinyllm.studies.probes.table import Row, write_csv

    say: Callable[[str], None] = _silent if invocation.json else _say
    arms = []
    for spec in arm_set.specs:
        try:
            composed = compose(*unquoted(arm_set.settings_of(spec)), program="probe", config_dir=invocation.config_dir)
            arms.append((spec, Trials(composed, typed=invocation.typed, allow=invocation.allow)))
        except UserError as error:
            hint = f"{error.hint}; arm {spec.name}" if len(arm_set.specs) > 1 else error.hint
            raise UserError(error.what, key=error.key, value=error.value, file=error.file, hint=hint) from error
    shelf = Shelf(Path(cfg.out))
    rows: list[Row] = []
    failed = False
    for spec, trials in arms:
        row = Row(arm=spec.name, settings=list(spec.settings), probes=[])
        rows.append(row)
        try:
            for found, known in trials.run(shelf):
                row.probes.append(found)
                say(f"{spec.name}, {found.line()}{', known already' if known else ''}")
        except UserError as error:  # training did not stay finite: the other arms have nothing to do with it
            failed = True
            say(f"{spec.name}: {error}")
    write_csv(shelf.path / "probes.csv", rows)
    if invocation.json:
        print(json.dumps({"arms": [row.plain() for row in rows]}))
    else:
        _show(rows)
    return FAILED if failed else 0


def probe_accuracies(
    settings: "Iterable[str]",
    tasks: "Sequence[str]",
    *,
    out: str,
    more: "Sequence[str]" = (),
    config_dir: str | None = None,
) -> dict[str, float]:
    """The accuracy of a composition by test, for a report: ``{"recall": 0.99, "length@2x": 0.71, …}``.

    What is probed are the composition's parts in the small model of ``conf/probe.yaml``: sizes, data and the length of
    training are the probe's own.

    Args:
        settings: of a training, in Hydra's grammar, literal values quoted; those that say nothing of the parts are left
            out.
        tasks: names of tasks.
        out: directory in which results are kept, and found again.
        more: settings of the probe itself, e.g. ``seeds=3``.
        config_dir: a further directory of option files.

    Raises:
        UserError: the parts do not go together at this size, a task that does not exist, or a training that fails.
    """
    from pathlib import Path

    from tinyllm.studies.probes.results import Shelf
    from tinyllm.studies.probes.table import Row

    trials = trials_of(settings, tasks, more=more, config_dir=config_dir)
    return Row(arm="", settings=[], probes=[found for found, _ in trials.run(Shelf(Path(out)))]).accuracies()


def trials_of(
    settings: "Iterable[str]", tasks: "Sequence[str]", *, more: "Sequence[str]" = (), config_dir: str | None = None
) -> "Trials":
    """What :func:`probe_accuracies` is going to train, checked.

    Raises:
        UserError: the parts do not go together at this size, or a task does not exist.
    """
    from pathlib import Path

    from tinyllm.config.compose import compose
    from tinyllm.config.quoting import unquoted
    from tinyllm.config.targets import options_of
    from tinyllm.studies.probes.probing import Trials

    own = (*parts_of(settings), f"tasks=[{','.join(tasks)}]", *more)
    cfg = compose(*unquoted(own), program="probe", config_dir=config_dir)
    allow = options_of(Path(config_dir)) if config_dir else frozenset()
    return Trials(cfg, typed=frozenset(), allow=allow)


def parts_of(settings: "Iterable[str]", *, sizes: "Collection[str]" = SIZES) -> list[str]:
    """Those settings of a training that say of what parts a model is made and how it learns, not how large it is."""
    from tinyllm.config.grammar import key_of

    keys = {one: key_of(one) for one in settings}
    return [
        one
        for one, key in keys.items()
        if is_within(key, (*PARTS, *ANY_SIZE)) or (key.startswith("model.") and not is_within(key, sizes))
    ]


def _show(rows: "Sequence[Row]") -> None:
    from rich.console import Console

    from tinyllm.studies.probes.table import table

    shown = table(rows)
    console = Console()
    needed = console.measure(shown, options=console.options.update(width=WIDEST)).maximum
    console.width = max(console.width, needed)  # a figure that is cut off is of no use
    console.print(shown)


def _say(text: str) -> None:
    print(text, flush=True)


def _silent(text: str) -> None:
    """For output that is JSON."""
