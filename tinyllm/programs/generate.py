"""``python -m tinyllm.generate``: continue prompts with a trained model.

Prompts and their continuations go to standard output, everything else to standard error.
"""

import io
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tinyllm.config.cli.main import Invocation
from tinyllm.config.targets import Option
from tinyllm.errors import UserError
from tinyllm.inference.generator import printed_prompt, stop_strings
from tinyllm.inference.printer import Printer
from tinyllm.inference.sampling import Sampling
from tinyllm.inference.session import Session
from tinyllm.programs.decoding_kernels import kernels_for
from tinyllm.programs.load_model import SavedModel, model_of, open_saved
from tinyllm.programs.quantization import loss_line, loss_sample, round_to_int8, unmeasured_line
from tinyllm.runs.listing import required_run
from tinyllm.utils.device import autocast, compute_dtype, pick_device, pick_precision
from tinyllm.utils.platforms import module
from tinyllm.utils.text import escape_control, print_note


def command(cfg: DictConfig, invocation: Invocation) -> int:
    """Continue the prompts of the command line, of a file, or as they are typed. Returns the exit code.

    ``run`` names a run directory, one of its checkpoints, or a Hugging Face directory.
    """
    run = required_run(cfg.run, program=invocation.program)
    if cfg.interactive and invocation.json:
        what = "--json and interactive=true cannot be combined"
        raise UserError(what, key="interactive", value=True, hint="leave one out")
    prompts = read_prompts(cfg)
    session = open_session(cfg, run, prompts, allow=invocation.allow)
    if invocation.json:
        answers = [
            {"run": run, "prompt": prompt, "seed": cfg.seed, "samples": texts}
            for prompt, texts in zip(prompts, session.texts(prompts, seed=cfg.seed), strict=True)
        ]
        print(json.dumps(answers[0] if cfg.prompts is None else answers, ensure_ascii=False))
    elif cfg.interactive:
        converse(session, first=cfg.prompt, seed=cfg.seed)
    else:
        show(session, prompts, seed=cfg.seed)
    return 0


def open_session(cfg: DictConfig, run: str, prompts: list[str], *, allow: frozenset[Option] = frozenset()) -> Session:
    """Load the model and check settings and prompts.

    Args:
        prompts: the first prompts of the session; one that is longer than the model's context is noted on standard
            error.
        allow: classes beyond tinyllm's own that the run's configuration may name.

    Raises:
        UserError: a setting out of range, a run that cannot be loaded, a prompt that the tokenizer cannot express.
    """
    # Settings are checked first: loading a large model takes minutes.
    sampling = Sampling(
        temperature=cfg.temperature,
        top_k=cfg.top_k,
        top_p=cfg.top_p,
        min_p=cfg.min_p,
        repetition_penalty=cfg.repetition_penalty,
    )
    stop = stop_strings(cfg.stop)
    device = pick_device(cfg.device, key="device")
    precision = pick_precision(cfg.precision, device)
    saved = open_saved(run, checkpoint=cfg.checkpoint, allow=allow, tell=print_note)
    model = model_of(saved, weights=cfg.weights, device=device, allow=allow)
    session = Session(
        model=model,
        tokenizer=saved.tokenizer,
        max_new_tokens=cfg.max_new_tokens,
        sampling=sampling,
        stop=stop,
        n_samples=cfg.n_samples,
        kv_cache=cfg.kv_cache,
        bos=cfg.bos,
        special=cfg.special,
        autocast=partial(autocast, device, precision),
    )
    key = "prompt" if cfg.prompts is None else "prompts"
    longest = max(len(session.prompt_ids(prompt, key=key)) for prompt in prompts)
    if longest > model.max_seq_len:
        print_note(f"a prompt has {longest:,} tokens: the model reads the last {model.max_seq_len:,}, its context")
    make_fast(model, saved, cfg, run=run, device=device, precision=precision, allow=allow)
    return session


def make_fast(
    model: Any,
    saved: SavedModel,
    cfg: DictConfig,
    *,
    run: str,
    device: torch.device,
    precision: str,
    allow: frozenset[Option] = frozenset(),
) -> None:
    """Convert a model to the form that is fastest for inference, as ``quantize`` and ``decode_kernels`` of ``cfg`` say.

    What rounding costs is noted on standard error.
    """
    kernels = kernels_for(device) if cfg.decode_kernels else None
    if cfg.quantize is None:
        model.for_inference(compute_dtype(precision), kernels=kernels)
        return
    sample = loss_sample(saved, model, allow=allow)
    exact = sample and sample.loss(model, device=device, precision=precision)
    round_to_int8(model, precision, kernels=kernels)
    if sample is None or exact is None:
        print_note(unmeasured_line(run, saved))
    else:
        print_note(loss_line(exact, sample.loss(model, device=device, precision=precision), sample.tokens))


def show(session: Session, prompts: list[str], *, seed: int) -> None:
    """Print the samples of each prompt as they grow, then their tokens, time and seed."""
    printer = Printer(
        prompts=[printed_prompt(session.tokenizer, prompt) for prompt in prompts],
        n_samples=session.n_samples,
        clean=escape_control if sys.stdout.isatty() else str,
    )
    start = time.perf_counter()
    printer.show(session.stream(prompts, seed=seed))
    seconds = time.perf_counter() - start
    print_note(f"{printer.tokens:,} token{'s' * (printer.tokens != 1)} in {seconds:.1f} s, seed {seed}")


def converse(session: Session, *, first: str, seed: int) -> None:
    """Ask for prompts until the input ends. Ctrl-C ends the sample that is being written.

    Args:
        first: the first prompt; empty: it is asked for too.
        seed: of the first prompt; each further one counts it up by one.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a byte that is not UTF-8 becomes a replacement character
    print("A prompt and Enter; Ctrl-C ends a sample, Ctrl-D the program.", file=sys.stderr)
    prompt = first or ask()
    while prompt is not None:
        try:
            show(session, [prompt], seed=seed)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        seed += 1
        prompt = ask()


def read_prompts(cfg: DictConfig) -> list[str]:
    """The prompts of ``prompt`` or of the file ``prompts``.

    Raises:
        UserError: the file cannot be read or is empty, or it is given together with ``prompt`` or ``interactive``.
    """
    if cfg.prompts is None:
        return [cfg.prompt]
    for key in ("prompt", "interactive"):
        if cfg[key]:
            raise UserError(f"{key} and prompts are mutually exclusive", key=key, value=cfg[key], hint="leave one out")
    if not cfg.prompts:
        hint = "give a text file, one prompt per line"
        raise UserError("no file given", key="prompts", value=cfg.prompts, hint=hint)
    try:
        text = Path(cfg.prompts).read_text(encoding="utf-8-sig")  # -sig drops a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror or "cannot be read"
        raise UserError(what, key="prompts", value=cfg.prompts, hint="give a text file, one prompt per line") from error
    prompts = [line for line in text.split("\n") if line]
    if not prompts:
        raise UserError("the file is empty", key="prompts", value=cfg.prompts, hint="one prompt per line")
    return prompts


def ask() -> str | None:
    """A line from standard input without its line end; None at the end of the input."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
    while True:
        try:
            if sys.stdout.isatty():
                module("readline")  # once loaded, input() edits the line and recalls earlier ones
                return input("> ")
            print("> ", end="", file=sys.stderr, flush=True)
            return input()
        except KeyboardInterrupt:
            print("\nCtrl-D ends.", file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return None
