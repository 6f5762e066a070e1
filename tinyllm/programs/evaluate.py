"""``python -m tinyllm.evaluate run=<run directory>``: loss, perplexity and bits per byte on a whole split.

``dataset=…`` takes other data than the run was trained on; its text is encoded with the run's tokenizer.
"""

import json
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from tinyllm.config.allowed import Option
    from tinyllm.config.cli.main import Invocation
    from tinyllm.data.token_data import TokenData
    from tinyllm.programs.load_model import SavedModel


def main() -> None:
    """The console script ``tinyllm-evaluate``."""
    from tinyllm.config.cli.main import run

    run("evaluate", _task)


def _task(cfg: "DictConfig", invocation: "Invocation") -> int:
    from tinyllm.errors import UserError
    from tinyllm.inference.runs import required_run
    from tinyllm.runs.metrics_log import finite

    named = [key for key in sorted(invocation.typed) if key.partition(".")[0] == "tokenizer"]
    if named:
        hint = "text is encoded with the tokenizer of the run; leave it out"
        raise UserError("the key has no effect here", key=named[0], value="…", hint=hint)
    result = evaluate_run(
        cfg, required_run(cfg.run, program="evaluate"), allow=invocation.allow, lines=not invocation.json
    )
    if invocation.json:
        print(json.dumps(finite(result)))
    else:
        _show(result)
    return 0


def evaluate_run(
    cfg: "DictConfig", run: str, *, allow: "frozenset[Option]" = frozenset(), lines: bool = False
) -> dict[str, Any]:
    """The metrics of a model on a split of the data it was trained with or of another data set; how they were computed.

    Args:
        cfg: of ``conf/evaluate.yaml``.
        run: a run directory, one of its checkpoints, or a directory of Hugging Face.
        allow: option files of one's own, whose classes the run's configuration may name.
        lines: tell on standard output which stage the preparation of the data has reached.

    Raises:
        UserError: the run cannot be loaded, its data is not there any more, a setting out of range.
    """
    from functools import partial

    from tinyllm.inference.evaluation import evaluate
    from tinyllm.programs.load_model import model_of, open_saved
    from tinyllm.utils.device import autocast, pick_device, pick_precision
    from tinyllm.utils.memory import memory_for
    from tinyllm.utils.text import say_aside

    device = pick_device(cfg.device, key="device")
    precision = pick_precision(cfg.precision, device)
    saved = open_saved(run, checkpoint=cfg.checkpoint, allow=allow, tell=say_aside)
    trained = saved.cfg
    context = trained.model.max_seq_len
    seq_len = cfg.seq_len or trained.trainer.seq_len or context
    stride = cfg.stride or seq_len
    _check_window(seq_len, stride, context)
    if cfg.dataset is not None:
        data = _open_other(cfg, saved, allow, lines)
        split = {"train": data.train, "val": data.val}[cfg.split]
    else:
        _check_own(saved, run)
        data = _open_data(saved, allow, lines)
        split = {"train": data.train, "val": data.val}[cfg.split]
        _check_data(saved.data, split, data.tokenizer.fingerprint(), run)
    model = model_of(saved, weights=cfg.weights, device=device, allow=allow)
    start = time.perf_counter()
    with (
        memory_for("the evaluation", hint="lower batch_size or seq_len"),
        _Progress(split.n_tokens - 1) as progress,
    ):
        metrics = evaluate(
            model,
            split,
            seq_len=seq_len,
            stride=stride,
            batch_size=cfg.batch_size or trained.trainer.batch_size,
            device=device,
            autocast=partial(autocast, device, precision),
            name=cfg.split,
            progress=progress,
        )
    return metrics | {
        "checkpoint": str(saved.path),
        "step": saved.step,
        "split": cfg.split,
        "tokens": progress.done,
        "seq_len": seq_len,
        "stride": stride,
        "precision": precision,
        "seconds": round(time.perf_counter() - start, 2),
    }


def _open_data(saved: "SavedModel", allow: "frozenset[Option]", lines: bool) -> "TokenData":
    """The data that a run was trained on, found where its own settings say."""
    from tinyllm.errors import UserError
    from tinyllm.programs.builders import open_corpus, open_data

    try:
        return open_data(*open_corpus(saved.cfg, allow=allow), trained_on=saved.data, lines=lines)
    except UserError as error:
        hint = f"{error.hint}; this is the run's own setting, and a relative path counts from the current directory"
        raise UserError(error.what, key=error.key, value=error.value, file=error.file, hint=hint) from error


def _open_other(cfg: "DictConfig", saved: "SavedModel", allow: "frozenset[Option]", lines: bool) -> "TokenData":
    """The data set that the command line names, in the tokens of the run."""
    from tinyllm.config.build import build
    from tinyllm.errors import UserError
    from tinyllm.programs.builders import open_data
    from tinyllm.tokenizers.pretrained import FixedTrainer

    corpus = build(cfg.dataset, path="dataset", allow=allow)
    corpus.check()
    data = open_data(corpus, FixedTrainer(saved.tokenizer), lines=lines)
    if data.tokenizer.vocab_size != saved.tokenizer.vocab_size:
        hint = "its text has characters that the run's tokenizer has no number for"
        raise UserError("this data set cannot be expressed", key="run", value=str(saved.path), hint=hint)
    return data


def _check_own(saved: "SavedModel", run: str) -> None:
    """Refuse to look for the data of a model that was not trained here."""
    from tinyllm.errors import UserError

    if "val" not in saved.data:
        hint = "this model was not trained here; give some, e.g. dataset=text dataset.path=<file>"
        raise UserError("no data to evaluate on", key="dataset", hint=hint)


def _check_window(seq_len: int, stride: int, context: int) -> None:
    from tinyllm.errors import UserError

    for key, value, most, what in (
        ("seq_len", seq_len, context, "the model's context"),
        ("stride", stride, seq_len, "seq_len"),
    ):
        if value > most:
            raise UserError("too large", key=key, value=value, hint=f"at most {most}, {what}")


def _check_data(trained_on: dict[str, str], split: Any, tokenizer: str, run: str) -> None:
    """Refuse data that is not the run's: its loss would not mean what it seems to."""
    from tinyllm.errors import UserError

    for what, was, now in (
        ("tokenizer", trained_on["tokenizer"], tokenizer),
        (f"{split.name} split", trained_on[split.name], split.fingerprint),
    ):
        if was != now:
            raise UserError(
                f"the data has changed since this run was trained: its {what} is another one now",
                key="run",
                value=run,
                hint="bring the old data back (embedded data belongs to one Python version)",
            )


class _Progress:
    """A bar on standard error while it lasts, if that is a terminal; counts the tokens either way."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        from tinyllm.utils.environment import shows

        self.done = 0
        self._bar = Progress(
            console=Console(stderr=True), transient=True, disable=not (sys.stderr.isatty() and shows("INFO"))
        )
        self._task = self._bar.add_task("evaluating", total=total)

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int) -> None:
        self.done = done
        self._bar.update(self._task, completed=done)


def _show(result: dict[str, Any]) -> None:
    """A small table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    split = result["split"]
    rows = [
        (name, f"{result[f'{split}/{name}']:.4f}") for name in ("loss", "ppl", "bpb") if f"{split}/{name}" in result
    ]
    window = f"{result['seq_len']}" + (f", stride {result['stride']}" if result["stride"] != result["seq_len"] else "")
    rows += [
        ("tokens", f"{result['tokens']:,}"),
        ("window", window),
        ("precision", result["precision"]),
        ("checkpoint", result["checkpoint"]),
        ("seconds", f"{result['seconds']:.1f}"),
    ]
    if not sys.stdout.isatty():
        for name, value in rows:
            print(f"{split}/{name:8} {value}" if name in ("loss", "ppl", "bpb") else f"{name:12} {value}")
        return
    table = Table(show_header=False, box=None)
    for name, value in rows:
        measured = name in ("loss", "ppl", "bpb")
        table.add_row(f"{split}/{name}" if measured else name, Text(value, style="bold" if measured else ""))
    Console().print(table)
