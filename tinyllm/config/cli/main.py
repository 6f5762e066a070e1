"""The life of an entry point: arguments in, a checked configuration to the task, an exit code out."""

import contextlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import tinyllm
from tinyllm.config import schema
from tinyllm.config.cli.arguments import CommandLine, check_settings, read, sweep_overrides
from tinyllm.config.compose import checked
from tinyllm.config.grammar import as_given, key_of
from tinyllm.config.hydra_errors import explained
from tinyllm.config.option_files import conf_dir
from tinyllm.config.targets import Option, options_of
from tinyllm.errors import RankError, UserError, about_path, one_line
from tinyllm.utils.environment import OF_ONE_RUN, is_follower, is_on, log_level, started_processes
from tinyllm.utils.files import create
from tinyllm.utils.memory import asked_for, is_out_of_memory
from tinyllm.utils.stop_signal import remembering_interrupts
from tinyllm.utils.streams import prepare_streams
from tinyllm.utils.text import plain

SIGNALLED = 128
"""Exit codes above it say which signal ended a job."""
OTHERS_WAIT_S = 15.0
"""What is wrong with a command line, all ranks find; rank 0 tells it and the launcher then ends the others."""
ERROR_FILE = "TINYLLM_ERROR_FILE"
"""Environment variable: the file that gets the first line of what goes wrong, for whoever started this process."""
ONE_LINE = "TINYLLM_ONE_LINE_ERRORS"
"""Environment variable: it was not a person who set HYDRA_FULL_ERROR, but the program that started this one."""
FILLED_IN = ("run.dir", "resume")
"""Keys that a sweep gives to each of its jobs."""
USER_ERROR = 2
"""Exit code of a mistake in what was asked for; a crash exits with 1."""


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """What a task gets besides its configuration."""

    overrides: list[str] = field(default_factory=list)
    """The settings as Hydra read them."""
    allow: frozenset[Option] = frozenset()
    """The options of ``--config-dir``, whose classes a configuration may name in their places."""
    json: bool = False
    """``--json`` was given: standard output holds JSON only."""
    choices: dict[str, str] = field(default_factory=dict)
    """The option chosen in each group."""
    config_dir: str | None = None
    """The directory of ``--config-dir``, as given."""
    typed: frozenset[str] = frozenset()
    """Keys and groups that this command line itself names, unlike those that a resumed run saved."""
    arguments: list[str] = field(default_factory=list)
    """The command line as it was typed."""
    is_job: bool = False
    """One job of a multirun."""
    prepared: Any = None
    """What ``prepare`` found out about the command line; see :func:`run`."""


Task = Callable[[DictConfig, Invocation], int]
"""Does the program's work; its result is the exit code."""


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """What a program does around the jobs of a multirun."""

    run: Callable[[DictConfig, DictConfig, Callable[[], int]], float | None]
    """Runs one: gets its configuration, Hydra's, and the work; returns what a search makes small."""
    exit_code: Callable[[], int]
    """Of the multirun that ended in this process."""


@remembering_interrupts()
def run(
    program: str,
    task: Task,
    *,
    prepare: Callable[[CommandLine], tuple[list[str], Any]] | None = None,
    jobs: Jobs | None = None,
    several: bool = False,
    ends_with_reader: bool = False,
) -> None:
    """Run ``task`` on the configuration of ``conf/<program>.yaml`` and the command line; ends the process.

    Hydra's flags work (``--cfg job --resolve``, ``--config-dir``, ``-m``, ``--info`` …). Errors that a person
    can mend are one line on standard error and exit code 2; ``HYDRA_FULL_ERROR=1`` or ``debug=true`` adds
    the traceback.

    Args:
        program: name of the root file.
        task: called once, in a multirun once per job.
        prepare: gives the settings for Hydra, e.g. those of a run to resume before the command line's, and what the
            task gets as ``Invocation.prepared``.
        jobs: what the jobs of a multirun are given; None: they run like any other, and their errors are counted.
        several: a key may have several values without a multirun; ``prepare`` makes one of them.
        ends_with_reader: the program is of no use once nobody reads its standard output.
    """
    prepare_streams(ends_with_reader=ends_with_reader)
    arguments = sys.argv[1:]
    if {"--help", "-h"} & set(arguments):
        from tinyllm.config.cli.help import help_text

        print(help_text(program), flush=True)
        sys.exit(0)
    if "--version" in arguments:
        print(f"tinyllm {tinyllm.__version__}")
        sys.exit(0)
    debug = _wants_tracebacks(arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then leaves the reporting of errors to us
    if not debug:
        os.environ[ONE_LINE] = "1"
    results: list[int] = []
    try:
        debug = debug or log_level() == "DEBUG"
        arguments, as_json = _without(arguments, "--json")
        line = read(arguments, several=several)
        if line.multirun and started_processes() > 1:
            hint = "start the multirun itself, without torchrun, or one job"
            raise UserError("a multirun cannot run inside torchrun", file="-m", hint=hint)
        settings, prepared = prepare(line) if prepare else (line.settings, None)
        if line.multirun and jobs is not None:
            sweep_overrides(settings)  # refuses the keys that each job is given
        if line.multirun:
            for name in OF_ONE_RUN:
                os.environ.pop(name, None)  # each job is a run of its own
        _refuse_untyped(settings, line.settings)
        check_settings(settings, several=line.multirun, directories=filter(None, [line.config_dir]))
        if line.multirun and jobs is None:  # what trains has sweepers of its own, which other programs inherit
            settings = [*settings, "hydra/sweeper=basic"]
        sys.argv = [sys.argv[0], *line.flags, *settings]
        known = Invocation(
            allow=_allowed(line.config_dir),
            json=as_json,
            config_dir=line.config_dir,
            typed=frozenset(map(key_of, line.settings)),
            arguments=arguments,
            prepared=prepared,
        )

        def job(cfg: DictConfig) -> float | None:
            if jobs is not None and _is_job():
                return jobs.run(cfg, _hydra(), lambda: _guarded(lambda: _job(cfg, program, task, known), debug))
            if results and results[-1] > SIGNALLED:  # whoever stops a job means the sweep
                results.append(results[-1])
                return None
            code = _guarded(lambda: _job(cfg, program, task, known), debug)
            results.append(code)
            if code and line.multirun:
                print(
                    f"in job {len(results) - 1}: {' '.join(as_given(HydraConfig.get().overrides.task))}",
                    file=sys.stderr,
                )
            return None

        def compose_and_run() -> int:
            hydra.main(config_path=str(conf_dir()), config_name=program, version_base="1.3")(job)()
            return jobs.exit_code() if jobs is not None and line.multirun else 0

        schema.register()
        results.append(_guarded(compose_and_run, debug))
    except Exception as error:
        results.append(_guarded(partial(_raise, error), debug))
    codes = results[:-1]
    if len(codes) > 1:
        failed = [str(index) for index, code in enumerate(codes) if code]
        print(f"{len(codes)} jobs, {len(failed)} failed" + (f": {', '.join(failed)}" if failed else ""))
    sys.stdout.flush()
    sys.exit(next((code for code in results if code), 0))


def _wants_tracebacks(arguments: list[str]) -> bool:
    """Whether errors are shown with their traceback."""
    typed = [is_on(value) for key, _, value in (one.partition("=") for one in arguments) if key == "debug"]
    asked = is_on(os.environ.get("HYDRA_FULL_ERROR")) and ONE_LINE not in os.environ
    return asked or any(typed[-1:])


def _job(cfg: DictConfig, program: str, task: Task, known: Invocation) -> int:
    """One job: the check, then the task."""
    hydra_node = _hydra()
    filled = FILLED_IN if _is_job() else ()
    cfg = checked(cfg, hydra_node, program, allow=known.allow, typed=known.typed, filled=filled)
    choices = {str(k): str(v) for k, v in hydra_node.runtime.choices.items() if not str(k).startswith("hydra/")}
    overrides = as_given(hydra_node.overrides.task)
    return task(cfg, replace(known, overrides=overrides, choices=choices, is_job=_is_job()))


def _hydra() -> DictConfig:
    return cast(DictConfig, HydraConfig.get())


def _is_job() -> bool:
    """Whether Hydra runs a job of a multirun: only those have a number."""
    return not OmegaConf.is_missing(_hydra().job, "num")


def _refuse_untyped(settings: Iterable[str], typed: Iterable[str]) -> None:
    """Of Hydra itself nothing is set but what this command line says: Hydra builds what such a setting names.

    Raises:
        UserError: a setting came from elsewhere.
    """
    known = set(map(key_of, typed))
    for one in settings:
        key = key_of(one)
        if "hydra" in re.split(r"[./@:]", key) and key not in known:
            raise UserError("a setting of Hydra out of a file", file=one, hint="such a setting is typed")


def _guarded(action: Callable[[], int], debug: bool) -> int:
    """The exit code of ``action``; its errors are reported, never passed on, so that a sweep goes on."""
    try:
        return action()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        return _report(error, debug)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return SIGNALLED + signal.SIGINT
    except Exception as error:
        if is_out_of_memory(error):
            return _report(
                UserError("not enough memory", hint=f"{asked_for(error)}; use less, or more is needed"), debug
            )
        if refused := about_path(error):
            return _report(refused, debug)
        if debug:
            traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = one_line(f"{type(error).__name__}: {error}")
        where = f"{Path(place.filename).name}:{place.lineno}"
        tell(f"error: {what} ({where}): not foreseen; HYDRA_FULL_ERROR=1 shows where it comes from")
        return 1


def _raise(error: Exception) -> int:
    raise error


def _report(error: Exception, debug: bool) -> int:
    """Print the line for a person; returns the exit code."""
    if debug:
        traceback.print_exception(error)
    shown = error if isinstance(error, UserError) else explained(error, sys.argv[1:])
    if is_follower() and not isinstance(error, RankError):
        time.sleep(OTHERS_WAIT_S)
    tell(f"error: {shown}")
    return USER_ERROR


def tell(line: str) -> None:
    """Print what went wrong; the first such line also goes to whoever started this process, if it wants it."""
    line = plain(line)
    print(line, file=sys.stderr, flush=True)
    if file := os.environ.get(ERROR_FILE):
        with contextlib.suppress(FileExistsError), create(Path(file)) as stream:
            stream.write((line + "\n").encode("utf-8", "surrogateescape"))


def _without(arguments: list[str], flag: str) -> tuple[list[str], bool]:
    """The arguments without ``flag``, and whether it was there."""
    return [one for one in arguments if one != flag], flag in arguments


def _allowed(config_dir: str | None) -> frozenset[Option]:
    """The options of a ``--config-dir``; their classes may lie in the current directory."""
    if config_dir is None:
        return frozenset()
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script does not look where it is called from
    return options_of(Path(config_dir))
