"""``python -m tinyllm.pairs``: sample a model, score its answers, and write the best and the worst as preferences."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from tinyllm.config.cli.main import Invocation
from tinyllm.config.targets import Option
from tinyllm.errors import UserError
from tinyllm.inference.answering import Answering
from tinyllm.inference.pairing import AnswerPair, Tally, find_pairs
from tinyllm.programs.conversations import saved_template
from tinyllm.programs.data_checks import ROW_ORDER, refuse_typed
from tinyllm.programs.load_model import model_of, open_saved
from tinyllm.programs.prompt_checks import build_rewards, build_tool
from tinyllm.programs.prompt_sources import Fitting, in_random_order, open_prompts
from tinyllm.runs.listing import required_run
from tinyllm.utils.device import autocast, pick_device, pick_precision
from tinyllm.utils.environment import shows
from tinyllm.utils.files import expand_home, write_text
from tinyllm.utils.tables import Column, Table
from tinyllm.utils.text import print_note


def command(cfg: DictConfig, invocation: Invocation) -> int:
    """Write pairs of answers, and print how many there are and what they are worth. Returns the exit code.

    ``run`` names a run directory, one of its checkpoints, or a Hugging Face directory.
    """
    run = required_run(cfg.run, program=invocation.program)
    tokenizer_keys = [key for key in sorted(invocation.typed) if key.partition(".")[0] == "tokenizer"]
    if tokenizer_keys:
        hint = "prompts are encoded with the tokenizer of the run; leave it out"
        raise UserError("the key has no effect here", key=tokenizer_keys[0], value="…", hint=hint)
    refuse_typed(cfg, ROW_ORDER, invocation.typed, hint="the model answers prompts one by one; leave it out")
    result = write_pairs(cfg, run, allow=invocation.allow)
    if invocation.json:
        print(json.dumps(result))
    else:
        _show(result)
    return 0


def write_pairs(cfg: DictConfig, run: str, *, allow: frozenset[Option] = frozenset()) -> dict[str, Any]:
    """Sample a model and write the best and the worst answer of each prompt to a new file.

    The file depends on the run, the prompts and the settings alone: answer k to prompt i is a function of
    (seed, i, k), and the prompts are taken in an order that depends on the seed.

    Args:
        cfg: the settings of ``conf/pairs.yaml``.
        run: a run directory, one of its checkpoints, or a Hugging Face directory.
        allow: classes beyond tinyllm's own that the run's configuration may name.

    Returns:
        Counts, mean rewards of all answers and of the chosen and rejected ones, and the settings.

    Raises:
        UserError: the run cannot be loaded, ``out`` exists, the prompts cannot be answered, or no pair was found.
    """
    out = check_new_file(cfg.out)
    device = pick_device(cfg.device, key="device")
    rewards, tool = build_rewards(cfg, allow=allow, device=device), build_tool(cfg, allow=allow)
    precision = pick_precision(cfg.precision, device)
    saved = open_saved(run, checkpoint=cfg.checkpoint, allow=allow, tell=print_note)
    answering = Answering(
        tokenizer=saved.tokenizer,
        template=saved_template(saved),
        tool=tool,
        max_new_tokens=cfg.max_new_tokens,
        temperature=cfg.temperature,
    )
    prompts = open_prompts(cfg.dataset, saved, cfg.split, allow=allow)
    fitting = Fitting([(answering, saved.cfg.model.max_seq_len)], prompts, key="max_new_tokens")
    chosen = islice(fitting(in_random_order(len(prompts), seed=cfg.seed)), cfg.n_prompts)
    model = model_of(saved, weights=cfg.weights, device=device, allow=allow)
    start, tally = time.perf_counter(), Tally()
    found = find_pairs(
        answering,
        model,
        prompts,
        chosen,
        rewards,
        tally,
        n_samples=cfg.n_samples,
        seed=cfg.seed,
        autocast=partial(autocast, device, precision),
    )
    pairs = list(islice(shown(found, total=cfg.n_pairs), cfg.n_pairs))
    fitting.require_some()
    counts = {
        "pairs": len(pairs),
        "prompts": tally.prompts,
        "answers": tally.answers,
        "ties": tally.ties,
        "unfinished": tally.unfinished,
        "unwritable": tally.unwritable,
        "too_long": fitting.too_long,
    }
    if not pairs:
        found_none = f"{tally.ties:,} ties; {tally.unfinished:,} of {tally.answers:,} answers were cut off"
        hint = f"{found_none}; use other rewards, more n_samples, a higher temperature or more max_new_tokens"
        raise UserError("no prompt has two answers of different reward", key="reward", value=_names(cfg), hint=hint)
    lines = (json.dumps(pair.to_dict(), ensure_ascii=False) + "\n" for pair in pairs)
    write_text(out, "".join(lines))
    means = {name_of(name): total / tally.answers for name, total in tally.scores.items()}
    return {
        "out": str(out),
        **counts,
        **means,
        **_sides(pairs),
        "split": cfg.split,
        "seed": cfg.seed,
        "checkpoint": str(saved.path),
        "step": saved.step,
        "seconds": round(time.perf_counter() - start, 2),
    }


def check_new_file(out: str) -> Path:
    """The path of a file that is to be created.

    Raises:
        UserError: it exists.
    """
    path = expand_home(out)
    if path.exists():
        hint = "name another file, or remove this one"
        raise UserError("the file exists", key="out", value=out, hint=hint)
    return path


def shown(pairs: Iterable[AnswerPair], *, total: int) -> Iterator[AnswerPair]:
    """The pairs, with a bar on standard error where that is a terminal."""
    hidden = not (sys.stderr.isatty() and shows("INFO"))
    with Progress(console=Console(stderr=True), transient=True, disable=hidden) as bar:
        yield from bar.track(pairs, total=total, description="pairs")


def name_of(reward: str) -> str:
    """The name of a mean reward; "" is the weighted sum."""
    return f"reward_{reward}" if reward else "reward"


def _sides(pairs: list[AnswerPair]) -> dict[str, float]:
    """Mean reward and length of the chosen and of the rejected answers."""
    means = {}
    for name in ("chosen", "rejected"):
        side = [getattr(pair, name) for pair in pairs]
        means[f"{name}_reward"] = sum(each.reward for each in side) / len(side)
        means[f"{name}_length"] = sum(each.completion.tokens for each in side) / len(side)
    return means


def _names(cfg: DictConfig) -> str:
    return f"[{','.join(map(str, cfg.reward))}]"


def _show(result: dict[str, Any]) -> None:
    rows = []
    for name, value in result.items():
        text = f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        rows.append((name, text))
    Table(columns=[Column(name="name"), Column(name="value")], rows=rows, header=False).show()
