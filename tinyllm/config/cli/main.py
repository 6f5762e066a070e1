"""Run a program: read the command line, compose and check its configuration, end with an exit code."""

import contextlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import hydra
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import tinyllm
from tinyllm.config import schema
from tinyllm.config.cli.arguments import check_override_grammar, read, sweep_overrides
from tinyllm.config.cli.help import help_text
from tinyllm.config.compose import checked
from tinyllm.config.grammar import as_given, key_of
from tinyllm.config.hydra_errors import explain
from tinyllm.config.option_files import conf_dir
from tinyllm.config.targets import Option, options_of, work_named
from tinyllm.errors import SIGNALLED, USER_ERROR, RankError, UserError, about_path, one_line
from tinyllm.utils.environment import RUN_NAMES, is_follower, is_on, log_level, started_processes
from tinyllm.utils.files import create
from tinyllm.utils.memory import failed_allocation, is_out_of_memory
from tinyllm.utils.stop_signal import end_with_caller, remembering_interrupts
from tinyllm.utils.streams import prepare_streams
from tinyllm.utils.text import escape_control

OTHERS_WAIT_S = 15.0
"""All ranks meet the same error. Rank 0 reports it; the others wait this long for the launcher to end them."""
ERROR_FILE = "TINYLLM_ERROR_FILE"
"""Environment variable: a file that receives the first error line, for the process that started this one."""
ONE_LINE = "TINYLLM_ONE_LINE_ERRORS"
"""Environment variable: HYDRA_FULL_ERROR was set by this program in a parent process, not by the user."""
LESS_MEMORY = "use a smaller model, batch or context, or a machine with more memory"
SET_PER_JOB = ("run.dir", "resume")
"""Keys that a sweep sets for each of its jobs."""


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """How the program was called: what a task gets besides its configuration."""

    overrides: list[str] = field(default_factory=list)
    """The settings, in Hydra's grammar."""
    allow: frozenset[Option] = frozenset()
    """The options of ``--config-dir``, whose classes the configuration may name."""
    json: bool = False
    """``--json`` was given: standard output holds nothing but JSON."""
    choices: dict[str, str] = field(default_factory=dict)
    """The chosen option of each group."""
    program: str = ""
    """Name of the program: ``train``, ``generate``, …"""
    config_dir: str | None = None
    """The directory of ``--config-dir``, as typed."""
    typed: frozenset[str] = frozenset()
    """Keys and groups on this command line, without those that a resumed run saved."""
    arguments: list[str] = field(default_factory=list)
    """The command line as typed, without ``--json``."""
    is_job: bool = False
    """This is one job of a multirun."""
    rewrite_result: Any = None
    """What ``rewrite_settings`` found out about the command line; see :func:`run`."""


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """How a program runs the jobs of a multirun."""

    run: Callable[[DictConfig, DictConfig, Callable[[], int]], float | None]
    """Runs one job, given its configuration, Hydra's node and the work; returns the value that a search minimizes."""
    exit_code: Callable[[], int]
    """The exit code of the multirun, once it has ended in this process."""


@remembering_interrupts()
def run(
    program: str,
    *tasks: str,
    rewrite_settings: str | None = None,
    rewrite_only_for: str | None = None,
    jobs: Jobs | None = None,
    several: bool = False,
    ends_with_reader: bool = False,
) -> None:
    """Run the tasks on the configuration of ``conf/<program>.yaml`` and the command line, then exit.

    Hydra's flags work (``--cfg job --resolve``, ``--config-dir``, ``-m``, ``--info`` …). A user error is reported as
    one line on standard error, with exit code 2; ``HYDRA_FULL_ERROR=1`` or ``debug=true`` adds the traceback.

    Args:
        program: name of the root file.
        tasks: functions ``module:name`` that take the configuration and an :class:`Invocation`. Each is imported just
            before it runs; the first that returns an exit code ends the sequence. In a multirun, they run once per job.
        rewrite_settings: a function ``module:name`` that takes the :class:`CommandLine`. It returns the settings for
            Hydra, e.g. the settings of the run to resume, followed by those of the command line, and a value for
            ``Invocation.rewrite_result``.
        rewrite_only_for: run ``rewrite_settings`` only if this key is on the command line.
        jobs: how to run the jobs of a multirun; None: like a single run, and failures are counted.
        several: allow comma-separated values without ``-m``; ``rewrite_settings`` must reduce them to one.
        ends_with_reader: exit when the reader of standard output goes away.
    """
    end_with_caller()
    prepare_streams(ends_with_reader=ends_with_reader)
    arguments = sys.argv[1:]
    if {"--help", "-h"} & set(arguments):
        print(help_text(program), flush=True)
        sys.exit(0)
    if "--version" in arguments:
        print(f"tinyllm {tinyllm.__version__}")
        sys.exit(0)
    debug = _wants_tracebacks(arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    if not debug:
        os.environ[ONE_LINE] = "1"
    start = _Start(program=program, tasks=tasks, jobs=jobs, debug=debug)
    code = _guarded(partial(start.run, arguments, rewrite_settings, rewrite_only_for, several), debug)
    if len(start.codes) > 1:
        failed = [str(index) for index, job_code in enumerate(start.codes) if job_code]
        print(f"{len(start.codes)} jobs, {len(failed)} failed" + (f": {', '.join(failed)}" if failed else ""))
    sys.stdout.flush()
    sys.exit(next(filter(None, [*start.codes, code]), 0))


@dataclass(kw_only=True)
class _Start:
    """One start of a program. Hydra calls :meth:`job` once, or once per job of a multirun, and keeps no result."""

    program: str
    tasks: Sequence[str]
    jobs: Jobs | None
    debug: bool
    settings: list[str] = field(default_factory=list)
    invocation: Invocation = field(default_factory=Invocation)
    codes: list[int] = field(default_factory=list)
    """Exit codes of the jobs that ran in this process without ``jobs``."""

    def run(
        self,
        arguments: list[str],
        rewrite_settings: str | None,
        rewrite_only_for: str | None,
        several: bool,
    ) -> int:
        """Read the command line and let Hydra run the job or jobs.

        Raises:
            UserError: the command line or a configuration is wrong.
        """
        log_level()  # a wrong LOG_LEVEL is reported before anything else
        as_json = "--json" in arguments
        arguments = [argument for argument in arguments if argument != "--json"]
        line = read(arguments, several=several)
        if line.multirun and started_processes() > 1:
            hint = "start the multirun without torchrun, or a single job with it"
            raise UserError("a multirun cannot run inside torchrun", file="-m", hint=hint)
        settings, rewrite_result = line.settings, None
        applies = rewrite_only_for is None or any(setting.startswith(f"{rewrite_only_for}=") for setting in settings)
        if rewrite_settings and applies:
            settings, rewrite_result = work_named(rewrite_settings)(line)
        if line.multirun and self.jobs is not None:
            sweep_overrides(settings)  # refuses keys that the sweep sets for each job
        if line.multirun:
            for name in RUN_NAMES:
                os.environ.pop(name, None)  # each job is a run of its own
        _refuse_untyped(settings, line.settings)
        check_override_grammar(settings, several=line.multirun, directories=filter(None, [line.config_dir]))
        if line.multirun and self.jobs is None:
            # conf/train.yaml chooses a sweeper that trains; programs that include its root file must not inherit it
            settings = [*settings, "hydra/sweeper=basic"]
        self.settings = settings
        self.invocation = Invocation(
            allow=_options_in(line.config_dir),
            json=as_json,
            program=self.program,
            config_dir=line.config_dir,
            typed=frozenset(map(key_of, line.settings)),
            arguments=arguments,
            rewrite_result=rewrite_result,
        )
        schema.register()
        sys.argv = [sys.argv[0], *line.flags, *settings]  # hydra.main reads its arguments only from sys.argv
        with explain(settings), _mode_from_flags():
            hydra.main(config_path=str(conf_dir()), config_name=self.program, version_base="1.3")(self.job)()
        return self.jobs.exit_code() if self.jobs is not None and line.multirun else 0

    def job(self, cfg: DictConfig) -> float | None:
        """Hydra's task function."""
        if self.jobs is not None and _is_job():
            return self.jobs.run(cfg, _hydra_node(), partial(_guarded, partial(self._work, cfg), self.debug))
        if self.codes and self.codes[-1] > SIGNALLED:  # a signal to one job is meant for all of them
            self.codes.append(self.codes[-1])
            return None
        code = _guarded(partial(self._work, cfg), self.debug)
        self.codes.append(code)
        if code and _is_job():
            print(f"in job {len(self.codes) - 1}: {' '.join(as_given(_hydra_node().overrides.task))}", file=sys.stderr)
        return None

    def _work(self, cfg: DictConfig) -> int:
        """Check the configuration, then run the task."""
        hydra_node, is_job = _hydra_node(), _is_job()
        choices = {str(k): str(v) for k, v in hydra_node.runtime.choices.items() if not str(k).startswith("hydra/")}
        overrides = as_given(hydra_node.overrides.task)
        invocation = replace(self.invocation, overrides=overrides, choices=choices, is_job=is_job)
        by_program = SET_PER_JOB if is_job else ()
        with explain(self.settings):
            cfg = checked(
                cfg, hydra_node, self.program, allow=invocation.allow, typed=invocation.typed, set_by_program=by_program
            )
            codes = (work_named(task)(cfg, invocation) for task in self.tasks)
            return next((code for code in codes if code is not None), 0)


@contextlib.contextmanager
def _mode_from_flags() -> Iterator[None]:
    """Keep Hydra from composing everything a first time, 0.15 s, only to read ``hydra.mode`` from it.

    Without a mode it goes by the flags, and nothing else can set one: ``config/cli/arguments.py`` refuses the key.
    """
    get_mode = Hydra.get_mode
    Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = get_mode  # type: ignore[method-assign]


def _wants_tracebacks(arguments: list[str]) -> bool:
    """Whether the user asked for tracebacks: ``debug=true``, ``HYDRA_FULL_ERROR=1`` or ``LOG_LEVEL=DEBUG``."""
    debug_values = [value for key, _, value in (argument.partition("=") for argument in arguments) if key == "debug"]
    from_hydra = is_on(os.environ.get("HYDRA_FULL_ERROR")) and ONE_LINE not in os.environ
    from_level = False
    with contextlib.suppress(UserError):
        from_level = log_level() == "DEBUG"
    return from_hydra or from_level or any(map(is_on, debug_values[-1:]))


def _hydra_node() -> DictConfig:
    return cast(DictConfig, HydraConfig.get())


def _is_job() -> bool:
    """Whether this is a job of a multirun; only those have a number."""
    return not OmegaConf.is_missing(_hydra_node().job, "num")


def _refuse_untyped(settings: Iterable[str], typed: Iterable[str]) -> None:
    """Hydra's own settings come from this command line only, since Hydra builds the classes that they name.

    Raises:
        UserError: a file holds one.
    """
    known = set(map(key_of, typed))
    for setting in settings:
        key = key_of(setting)
        if "hydra" in re.split(r"[./@:]", key) and key not in known:
            raise UserError(
                "a file must not change Hydra's own settings", file=setting, hint="give it on the command line instead"
            )


def _guarded(action: Callable[[], int], debug: bool) -> int:
    """The exit code of ``action``. Its errors are reported instead of raised, so that a sweep continues."""
    try:
        return action()
    except UserError as error:
        return _report(error, error, debug)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return SIGNALLED + signal.SIGINT
    except Exception as error:
        if is_out_of_memory(error):
            return _report(
                UserError("not enough memory", hint=f"{failed_allocation(error)}; {LESS_MEMORY}"), error, debug
            )
        if path_error := about_path(error):
            return _report(path_error, error, debug)
        if debug:
            traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = one_line(f"{type(error).__name__}: {error}")
        where = f"{Path(place.filename).name}:{place.lineno}"
        tell(f"error: {what} ({where}): unexpected error; HYDRA_FULL_ERROR=1 prints the traceback")
        return 1


def _report(shown: UserError, error: Exception, debug: bool) -> int:
    """Print the error line, after the traceback if that is wanted; returns the exit code."""
    if debug:
        traceback.print_exception(error)
    if is_follower() and not isinstance(shown, RankError):
        time.sleep(OTHERS_WAIT_S)
    tell(f"error: {shown}")
    return USER_ERROR


def tell(line: str) -> None:
    """Print an error line; the first one also goes to the file that the parent process asked for."""
    line = escape_control(line)
    print(line, file=sys.stderr, flush=True)
    if file := os.environ.get(ERROR_FILE):
        with contextlib.suppress(FileExistsError), create(Path(file)) as stream:
            stream.write((line + "\n").encode("utf-8", "surrogateescape"))


def _options_in(config_dir: str | None) -> frozenset[Option]:
    """The options of ``--config-dir``; their classes may be modules in the current directory."""
    if config_dir is None:
        return frozenset()
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script does not have it, unlike python -m
    return options_of(Path(config_dir))
