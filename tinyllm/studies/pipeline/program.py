"""The program ``tinyllm.pipeline``: plan the stages, run those that have not run, report."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from tinyllm.config.build import build
from tinyllm.config.cli.main import Invocation
from tinyllm.programs.builders import plain
from tinyllm.runs.layout import TEMPLATE
from tinyllm.runs.seal import sealed
from tinyllm.studies.compare.pipeline import Stopped
from tinyllm.studies.compare.progress import Screen
from tinyllm.studies.compare.run_ledger import slug
from tinyllm.studies.compare.runner import locked_study_dir
from tinyllm.studies.pipeline.command_line import TypedSettings
from tinyllm.studies.pipeline.measuring import columns_of
from tinyllm.studies.pipeline.overview import plan_table, provenance_of
from tinyllm.studies.pipeline.plan import Chain, Planner
from tinyllm.studies.pipeline.recipe import Recipe
from tinyllm.studies.pipeline.report import show, write_report
from tinyllm.studies.pipeline.results import FILE, PipelineResult
from tinyllm.studies.pipeline.running import Running, StageFailed
from tinyllm.utils.files import write_json
from tinyllm.utils.stop_signal import listening
from tinyllm.utils.text import command, escape_control
from tinyllm.utils.write_errors import readable_write_errors

NOT_FINISHED = 1
"""Exit code when a stage failed."""


def pipeline(cfg: DictConfig, invocation: Invocation) -> int:
    """Run a recipe and show its report; returns the exit code.

    Raises:
        UserError: an invalid setting, reported before anything runs; an evaluation that failed; a changed run file.
    """
    screen = Screen(quiet=invocation.json)
    typed: TypedSettings = invocation.rewrite_result
    whole: Recipe = build(cfg.recipe, path="recipe", allow=invocation.allow)
    recipe = whole.with_settings(typed.shared, typed.of_stage).until(cfg.until)
    name = recipe_name(cfg, invocation)
    directory = Path(cfg.out) if cfg.out is not None else Path("outputs") / "pipeline" / slug(name)
    planner = Planner(recipe=recipe, directory=directory, config_dir=invocation.config_dir, allow=invocation.allow)
    chains = [planner.chain(int(cfg.seed) + number) for number in range(cfg.seeds)]
    if cfg.dry_run:
        plan = plan_table(chains)
        print(json.dumps(plan.content)) if invocation.json else plan.show()
        return 0
    again = shlex.join(["python", "-m", "tinyllm.pipeline", *invocation.arguments])
    with listening() as stop, locked_study_dir(directory), readable_write_errors(directory):
        screen.say(f"pipeline: {directory}")
        running = Running(
            recipe=recipe,
            directory=directory,
            stop=stop,
            screen=screen,
            config_dir=invocation.config_dir,
            allow=invocation.allow,
        )
        try:
            stages = [stage for chain in chains for stage in running.chain(chain)]
        except Stopped:
            screen.say(f"stopped; the same command goes on from here: {again}")
            return stop.exit_code
        except StageFailed as failed:
            screen.say(failure(failed, chains, again=again))
            return NOT_FINISHED
        result = PipelineResult(
            recipe=name,
            command=again,
            seeds=[chain.seed for chain in chains],
            columns=columns_of(recipe),
            stages=stages,
            talk=talk(chains[0], recipe),
            provenance=provenance_of(chains),
            digests={
                str(stage.path.relative_to(directory)): sealed(stage.path)
                for chain in chains
                for stage in chain.stages
                if stage.trains
            },
        )
        write_json(directory / FILE, asdict(result))
        write_report(result, directory)
    if invocation.json:
        print(json.dumps(asdict(result)))
    else:
        show(result, directory)
    return 0


def recipe_name(cfg: DictConfig, invocation: Invocation) -> str:
    """The option's name, or that of the recipe's file."""
    path = plain(cfg.recipe).get("path")
    return Path(str(path)).stem if path is not None else invocation.choices["recipe"]


def failure(failed: StageFailed, chains: list[Chain], *, again: str) -> str:
    """The line for a stage that failed: why, and what was not started."""
    names = [stage.name for stage in chains[0].stages]
    left = names[names.index(failed.stage) + 1 :]
    later = [str(chain.seed) for chain in chains if chain.seed > failed.seed]
    missing = (f"; not started: {', '.join(left)}" if left else "") + (f"; seeds {', '.join(later)}" if later else "")
    reason = escape_control(failed.reason)
    return f"error: stage {failed.stage} failed: {reason}{missing}; output: {failed.log}; to try again: {again}"


def talk(chain: Chain, recipe: Recipe) -> str:
    """A command to talk to the model of the last stage that trains, or to let it continue a text."""
    last = [stage for stage in chain.stages if stage.trains][-1]
    if (last.path / TEMPLATE).is_file():
        return command("chat", f"run={last.path}", *recipe.chat)
    return command("generate", f"run={last.path}")
