"""``python -m tinyllm.chat``: talk to a model in the terminal.

Answers go to standard output, everything else to standard error. With ``--json``, each answer is a line of JSON.
"""

import io
import json
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

from omegaconf import DictConfig

from tinyllm.config.build import build
from tinyllm.config.cli.main import Invocation
from tinyllm.config.targets import Option
from tinyllm.data.chat.messages import USER
from tinyllm.errors import UserError
from tinyllm.inference.conversing import NOTE, RESULT, TEXT, Conversing
from tinyllm.inference.sampling import Sampling
from tinyllm.programs.conversations import saved_template
from tinyllm.programs.decoding_kernels import kernels_for
from tinyllm.programs.generate import ask
from tinyllm.programs.load_model import model_of, open_saved
from tinyllm.runs.listing import required_run
from tinyllm.utils.device import autocast, compute_dtype, pick_device, pick_precision
from tinyllm.utils.text import escape_control, print_note

HELP = "A message and Enter; Ctrl-C ends an answer; /reset starts again, /quit or Ctrl-D ends."
RESET, QUIT = "/reset", "/quit"


def command(cfg: DictConfig, invocation: Invocation) -> int:
    """Answer messages until the input ends. Returns the exit code.

    ``run`` names a run directory, one of its checkpoints, or a Hugging Face directory.
    """
    run = required_run(cfg.run, program=invocation.program)
    conversing = open_conversation(cfg, run, allow=invocation.allow)
    converse(conversing, show=show_json if invocation.json else show)
    return 0


def open_conversation(cfg: DictConfig, run: str, *, allow: frozenset[Option] = frozenset()) -> Conversing:
    """Load the model and check the settings.

    Raises:
        UserError: a setting out of range, a run that cannot be loaded, or a model without a chat template.
    """
    filters = {name: cfg[name] for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")}
    sampling = Sampling(**filters)
    tool = build(cfg.tools, path="tools", allow=allow) if cfg.tools else None
    device = pick_device(cfg.device, key="device")
    precision = pick_precision(cfg.precision, device)
    saved = open_saved(run, checkpoint=cfg.checkpoint, allow=allow, tell=print_note)
    template = saved_template(saved)
    template.require(saved.tokenizer)
    model = model_of(saved, weights=cfg.weights, device=device, allow=allow)
    model.for_inference(compute_dtype(precision), kernels=kernels_for(device) if cfg.decode_kernels else None)
    return Conversing(
        model=model,
        tokenizer=saved.tokenizer,
        template=template,
        sampling=sampling,
        tool=tool,
        max_new_tokens=cfg.max_new_tokens,
        seed=cfg.seed,
        system=cfg.system or "",
        autocast=partial(autocast, device, precision),
    )


def converse(conversing: Conversing, *, show: Callable[[Conversing, str], None]) -> None:
    """Read messages, a line each, from the terminal or a pipe, and print the answers."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a byte that is not UTF-8 becomes a replacement character
    if sys.stdin.isatty():
        print(HELP, file=sys.stderr)
    while (text := ask()) is not None and text.strip() != QUIT:
        if text.strip() == RESET:
            conversing.reset()
        elif text.strip().startswith("/"):
            print(f"unknown command {text.strip()}: {RESET} or {QUIT}", file=sys.stderr)
        elif text.strip():
            try:
                show(conversing, text)
            except KeyboardInterrupt:
                print("\nstopped", file=sys.stderr)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)


def show_json(conversing: Conversing, text: str) -> None:
    """Print one answer as an object on a line of its own.

    Its ``messages`` are those of the assistant and its tools, in OpenAI's form; ``answer`` is the text of the last one.
    What cannot be answered, or was ended by Ctrl-C, has an ``error``.
    """
    notes: list[str] = []
    found: dict[str, Any] = {"prompt": text}
    try:
        with closing(conversing.answer(text)) as pieces:
            notes += [piece.text for piece in pieces if piece.kind == NOTE]
        asked = max(place for place, message in enumerate(conversing.messages) if message.role == USER)
        messages = conversing.messages[asked + 1 :]
        found |= {"answer": messages[-1].content if messages else "", "messages": [each.to_dict() for each in messages]}
    except UserError as error:
        found["error"] = str(error)
    except KeyboardInterrupt:
        found["error"] = "stopped"
    print(json.dumps(found | {"notes": notes}, ensure_ascii=False), flush=True)


def show(conversing: Conversing, text: str) -> None:
    """Print one answer. Calls and results of tools stand in brackets."""
    clean = escape_control if sys.stdout.isatty() else str
    with closing(conversing.answer(text)) as pieces:  # Ctrl-C keeps what was said so far in the conversation
        for piece in pieces:
            if piece.kind == TEXT:
                print(clean(piece.text), end="", flush=True)
            elif piece.kind == NOTE:
                print(f"[{escape_control(piece.text)}]", file=sys.stderr)
            else:
                mark = "=" if piece.kind == RESULT else ""
                print(f"[{mark}{' ' if mark else ''}{clean(piece.text)}]", end=" ", flush=True)
    print(flush=True)
