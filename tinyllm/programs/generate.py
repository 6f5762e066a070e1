"""``python -m tinyllm.generate run=<run directory> prompt="Once"``: text from a trained model.

Prompt and text go to standard output, everything else to standard error.
"""

import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tinyllm.config.allowed import Option
    from tinyllm.config.cli.main import Invocation


def main() -> None:
    """The console script ``tinyllm-generate``."""
    from tinyllm.config.cli.main import run

    run("generate", _task, ends_with_reader=True)


def _task(cfg: "DictConfig", invocation: "Invocation") -> int:
    from tinyllm.errors import UserError
    from tinyllm.inference.runs import required_run

    run_dir = required_run(cfg.run, program="generate")
    if cfg.interactive and invocation.json:
        raise UserError(
            "--json gives one answer, interactive many", key="interactive", value=True, hint="leave one out"
        )
    prompts = _read_prompts(cfg)
    session = Session(cfg, run_dir, prompts, allow=invocation.allow)
    if invocation.json:
        answers = session.samples(prompts, seed=cfg.seed)
        print(json.dumps(answers[0] if cfg.prompts is None else answers, ensure_ascii=False))
        return 0
    if cfg.interactive:
        session.converse()
    else:
        session.say(prompts, seed=cfg.seed)
    return 0


LESS_MEMORY = "fewer samples or prompts at a time need less, as does a lower max_new_tokens"


class Session:
    """A loaded model and the settings it is sampled with.

    Args:
        cfg: of ``conf/generate.yaml``.
        run_dir: where the model is.
        prompts: what it will be asked first, checked here.
        allow: classes beside tinyllm's own that the run's configuration may name.

    Raises:
        UserError: a setting out of range, a run that cannot be loaded, a prompt that cannot be expressed.
    """

    def __init__(
        self, cfg: "DictConfig", run_dir: str, prompts: list[str], *, allow: "frozenset[Option]" = frozenset()
    ) -> None:
        from tinyllm.inference.generator import prompt_ids, stop_strings
        from tinyllm.inference.sampling import Sampling

        # Everything that can be refused without the model comes before it is loaded.
        sampling = Sampling(
            temperature=cfg.temperature,
            top_k=cfg.top_k,
            top_p=cfg.top_p,
            min_p=cfg.min_p,
            repetition_penalty=cfg.repetition_penalty,
        )
        stop = stop_strings(cfg.stop)

        import tinyllm
        from tinyllm.utils.device import autocast, compute_dtype, pick_device, pick_precision
        from tinyllm.utils.text import say_aside

        device = pick_device(cfg.device, key="device")
        precision = pick_precision(cfg.precision, device)
        self.cfg, self.run_dir = cfg, run_dir
        self.model, self.tokenizer = tinyllm.load(
            run_dir, checkpoint=cfg.checkpoint, weights=cfg.weights, device=device, allow=allow, tell=say_aside
        )
        reading = {"bos": cfg.bos, "special": cfg.special}
        longest = max(
            len(prompt_ids(self.tokenizer, prompt, **reading, key="prompt" if cfg.prompts is None else "prompts"))
            for prompt in prompts
        )
        if longest > self.model.max_seq_len:
            room = self.model.max_seq_len
            say_aside(f"a prompt of {longest:,} tokens is longer than the context: its last {room:,} are read")
        self.model.for_inference(compute_dtype(precision))
        self.settings: dict[str, Any] = {
            "max_new_tokens": cfg.max_new_tokens,
            "sampling": sampling,
            "stop": stop,
            "n_samples": cfg.n_samples,
            "kv_cache": cfg.kv_cache,
            **reading,
            "autocast": lambda: autocast(device, precision),
        }

    def say(self, prompts: list[str], *, seed: int) -> None:
        """Print samples of each prompt."""
        from tinyllm.inference.generator import echo, stream_text
        from tinyllm.inference.printer import Printer
        from tinyllm.utils.memory import memory_for
        from tinyllm.utils.text import plain, say_aside

        printer = Printer(
            prompts=[echo(self.tokenizer, prompt) for prompt in prompts],
            n_samples=self.cfg.n_samples,
            clean=plain if sys.stdout.isatty() else str,
        )
        start = time.perf_counter()
        with memory_for("generation", hint=LESS_MEMORY):
            printer.show(stream_text(self.model, self.tokenizer, prompts, seed=seed, **self.settings))
        seconds = time.perf_counter() - start
        say_aside(f"{printer.tokens:,} token{'s' * (printer.tokens != 1)} in {seconds:.1f} s, seed {seed}")

    def samples(self, prompts: list[str], *, seed: int) -> list[dict[str, Any]]:
        """The samples of each prompt as plain data; each text is what follows the prompt."""
        from tinyllm.inference.generator import generate_batch
        from tinyllm.utils.memory import memory_for

        with memory_for("generation", hint=LESS_MEMORY):
            batch = generate_batch(self.model, self.tokenizer, prompts, seed=seed, **self.settings)
        return [
            {"run": self.run_dir, "prompt": prompt, "seed": seed, "samples": texts}
            for prompt, texts in zip(prompts, batch, strict=True)
        ]

    def converse(self) -> None:
        """Ask for prompts until the input ends. Ctrl-C ends the sample that is being written."""
        from tinyllm.errors import UserError

        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # what is not UTF-8 is one odd letter, not the end
        print("A prompt and Enter; Ctrl-C ends a sample, Ctrl-D the program.", file=sys.stderr)
        seed, prompt = self.cfg.seed, self.cfg.prompt or _ask()
        while prompt is not None:
            try:
                self.say([prompt], seed=seed)
            except KeyboardInterrupt:
                print("stopped", file=sys.stderr)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
            seed += 1
            prompt = _ask()


def _read_prompts(cfg: "DictConfig") -> list[str]:
    """The prompts of this call.

    Raises:
        UserError: a file that cannot be read or holds none, or one beside a setting that it excludes.
    """
    from tinyllm.errors import UserError

    if cfg.prompts is None:
        return [cfg.prompt]
    for key in ("prompt", "interactive"):
        if cfg[key]:
            raise UserError(f"{key} and prompts exclude each other", key=key, value=cfg[key], hint="leave one out")
    if not cfg.prompts:
        raise UserError("no file is given", key="prompts", value=cfg.prompts, hint="a text file, one prompt per line")
    try:
        text = Path(cfg.prompts).read_text(encoding="utf-8-sig")  # the mark at the beginning is no part of a prompt
    except (OSError, UnicodeDecodeError) as error:
        what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror or "cannot be read"
        raise UserError(what, key="prompts", value=cfg.prompts, hint="give a text file, one prompt per line") from error
    prompts = [line for line in text.split("\n") if line]
    if not prompts:
        raise UserError("the file is empty", key="prompts", value=cfg.prompts, hint="one prompt per line")
    return prompts


def _ask() -> str | None:
    """A line from standard input without its end; None when there is no more."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
    while True:
        try:
            if sys.stdout.isatty():
                with contextlib.suppress(ImportError):  # Windows edits lines by itself
                    import readline  # noqa: F401  (importing it lets input() edit the line and recall earlier ones)
                return input("> ")
            print("> ", end="", file=sys.stderr, flush=True)
            return input()
        except KeyboardInterrupt:
            print("\nCtrl-D ends.", file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return None
