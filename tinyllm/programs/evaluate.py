"""``python -m tinyllm.evaluate``: loss, perplexity and bits per byte of a model on a whole split.

``dataset=…`` selects different data from that the run was trained on; its text is encoded with the run's tokenizer.
"""

import json
import sys
import time
from collections.abc import Collection
from functools import partial
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from tinyllm.config.cli.main import Invocation
from tinyllm.config.targets import Option
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.corpus import Corpus
from tinyllm.data.loader import eval_tokens
from tinyllm.data.mixture import Mixture
from tinyllm.data.prepare import cache_root
from tinyllm.data.run_data import RunData, data_part
from tinyllm.data.tasks.corpus import TaskCorpus
from tinyllm.errors import UserError
from tinyllm.inference.evaluation import evaluate_sources
from tinyllm.nn.loss import perplexity
from tinyllm.programs.builders import build_corpus, open_corpus, open_data, plain
from tinyllm.programs.conversations import template_of
from tinyllm.programs.data_checks import ROW_ORDER, refuse_start_early, refuse_typed
from tinyllm.programs.evaluate_pairs import evaluate_pairs, pairs_to_evaluate, show_pairs
from tinyllm.programs.evaluate_prompts import evaluate_prompts, prompts_to_evaluate
from tinyllm.programs.evaluate_versus import evaluate_versus, show_versus
from tinyllm.programs.load_model import model_of, open_saved
from tinyllm.programs.quantization import round_to_int8
from tinyllm.programs.resume import is_data_path
from tinyllm.programs.saved_model import SavedModel
from tinyllm.programs.task_answers import answer_rows, check_answer_keys, shown_settings, task_answers
from tinyllm.runs.listing import required_run
from tinyllm.runs.metrics_log import finite
from tinyllm.tokenizers.pretrained import FixedTrainer
from tinyllm.utils.device import autocast, pick_device, pick_precision
from tinyllm.utils.environment import shows
from tinyllm.utils.memory import memory_for
from tinyllm.utils.tables import Column, Table
from tinyllm.utils.text import print_note

METRICS = ("loss", "ppl", "bpb")
WORD_PERPLEXITY = "word ppl (words of the uncleaned text)"


def command(cfg: DictConfig, invocation: Invocation) -> int:
    """Print the metrics of a run. Returns the exit code.

    ``run`` names a run directory, one of its checkpoints, or a Hugging Face directory.
    """
    run = required_run(cfg.run, program=invocation.program)
    tokenizer_keys = [key for key in sorted(invocation.typed) if key.partition(".")[0] == "tokenizer"]
    if tokenizer_keys:
        hint = "text is encoded with the tokenizer of the run; leave it out"
        raise UserError("the key has no effect here", key=tokenizer_keys[0], value="…", hint=hint)
    hint = "evaluation reads every token of a split in its order; leave it out"
    refuse_typed(cfg, ROW_ORDER, invocation.typed, hint=hint)
    result = evaluate_run(cfg, run, allow=invocation.allow, lines=not invocation.json, typed=invocation.typed)
    if invocation.json:
        print(json.dumps(finite(result)))
    elif "pairs" in result:
        show_pairs(result)
    elif "win/rate" in result:
        show_versus(result)
    else:
        _show(result)
    return 0


def evaluate_run(
    cfg: DictConfig,
    run: str,
    *,
    allow: frozenset[Option] = frozenset(),
    lines: bool = False,
    typed: Collection[str] = (),
) -> dict[str, Any]:
    """Evaluate a model on a split of the data it was trained on, or of a different data set.

    Args:
        cfg: the settings of ``conf/evaluate.yaml``.
        run: a run directory, one of its checkpoints, or a Hugging Face directory.
        allow: classes beyond tinyllm's own that the run's configuration may name.
        lines: print the stages of data preparation to standard output.

    Returns:
        The metrics of :func:`tinyllm.inference.evaluation.evaluate_sources`, on tasks also those of
        :func:`tinyllm.inference.answering.answer_metrics`, and the settings they were computed with; with
        ``cfg.versus`` those of :func:`tinyllm.programs.evaluate_versus.evaluate_versus`.

    Raises:
        UserError: the run cannot be loaded, its data is missing or has changed, or a setting is out of range.
    """
    device = pick_device(cfg.device, key="device")
    precision = pick_precision(cfg.precision, device)
    saved = open_saved(run, checkpoint=cfg.checkpoint, allow=allow, tell=print_note)
    if cfg.versus is not None:
        return evaluate_versus(cfg, saved, run, allow=allow)
    check_answer_keys(saved.cfg.dataset if cfg.dataset is None else cfg.dataset, typed, allow=allow)
    if (pairs := pairs_to_evaluate(cfg, saved, allow=allow)) is not None:
        return evaluate_pairs(cfg, saved, pairs, run, allow=allow)
    if (prompts := prompts_to_evaluate(cfg, saved, allow=allow)) is not None:
        return evaluate_prompts(cfg, saved, prompts, run, typed=typed, allow=allow)
    trainer, context = saved.cfg.trainer, saved.cfg.model.max_seq_len
    seq_len = cfg.seq_len or trainer.seq_len or context
    stride = cfg.stride or seq_len
    for key, value, limit, what in (
        ("seq_len", seq_len, context, "the model's context"),
        ("stride", stride, seq_len, "seq_len"),
    ):
        if value > limit:
            raise UserError("too large", key=key, value=value, hint=f"at most {limit}, {what}")
    if cfg.dataset is None:
        corpus, data = _own_data(cfg.split, saved, run, allow=allow, lines=lines)
    else:
        corpus, data = _other_data(cfg, saved, allow=allow, lines=lines)
    splits = data.splits("val" if cfg.split == "test" else cfg.split)
    model = model_of(saved, weights=cfg.weights, device=device, allow=allow)
    if cfg.quantize == "int8":
        round_to_int8(model, precision)
    start = time.perf_counter()
    with (
        memory_for("the evaluation", hint="lower batch_size or seq_len"),
        _TokenProgress(sum(eval_tokens(split, max_tokens=cfg.eval_tokens) for split in splits.values())) as progress,
    ):
        metrics = evaluate_sources(
            model,
            splits,
            data.shares(),
            seq_len=seq_len,
            stride=stride,
            batch_size=cfg.batch_size or trainer.batch_size,
            device=device,
            autocast=partial(autocast, device, precision),
            name=cfg.split,
            max_tokens=cfg.eval_tokens,
            progress=progress,
        )
    if isinstance(corpus, TaskCorpus):
        metrics |= task_answers(cfg, saved, corpus, model, device=device, precision=precision, allow=allow)
        metrics |= shown_settings(cfg)
    if cfg.eval_tokens is None:  # the words of a part of the split are not counted
        metrics |= _per_word(metrics[f"{cfg.split}/loss"] * progress.done, corpus, cfg.split)
    return metrics | {
        "checkpoint": str(saved.path),
        "step": saved.step,
        "split": cfg.split,
        "tokens": progress.done,
        "seq_len": seq_len,
        "stride": stride,
        "precision": precision,
        "quantize": cfg.quantize,
        "seconds": round(time.perf_counter() - start, 2),
    }


def _own_data(
    name: str, saved: SavedModel, run: str, *, allow: frozenset[Option], lines: bool
) -> tuple[Corpus | Mixture, RunData]:
    """The data that a run was trained on, found where the run's settings say, and the data set; of ``test``, the split
    stands in place of validation.

    Raises:
        UserError: the model was not trained with tinyllm, or its data is missing or has changed.
    """
    if "val" not in saved.data:
        hint = "give one, e.g. dataset=text dataset.path=<file>"
        raise UserError(
            "this model was not trained with tinyllm, so it has no data of its own", key="dataset", hint=hint
        )
    try:
        corpus, tokenizer_trainer = open_corpus(saved.cfg, allow=allow)
        if name == "test":  # a run records fingerprints of the data it reads, and so none of this split
            corpus.pin(saved.data.get("revision"))
            return corpus, _encoded(corpus.for_test(), saved, lines=lines)
        data = open_data(corpus, tokenizer_trainer, trained_on=saved.data, lines=lines)
    except UserError as error:
        source = "this path comes from the run's saved settings; relative paths are resolved from the current directory"
        hint = f"{error.hint}; {source}" if is_data_path(error.key) else error.hint
        raise UserError(error.what, key=error.key, value=error.value, file=error.file, hint=hint) from error
    fingerprints = data.fingerprints()
    for part in ("tokenizer", *(part for part in fingerprints if part.startswith(f"{name}.")), name):
        trained_on, current = saved.data.get(part), fingerprints[part]
        if trained_on != current:
            raise UserError(
                f"the {data_part(part)} differs from the one the run was trained with",
                key="run",
                value=run,
                hint=f"fingerprint {current[:12]}, the run's is {(trained_on or 'none')[:12]};"
                " restore the old data (the embedded corpus differs between Python versions)",
            )
    return corpus, data


def _other_data(
    cfg: DictConfig, saved: SavedModel, *, allow: frozenset[Option], lines: bool
) -> tuple[Corpus | Mixture, RunData]:
    """The data of the command line, encoded with the run's tokenizer, and the data set; of ``test``, the split stands
    in place of validation.

    Raises:
        UserError: the tokenizer has no ids for some of its text.
    """
    refuse_start_early(cfg)
    corpus = build_corpus(plain(cfg.dataset), allow=allow, **template_of(cfg.dataset, saved, allow=allow))
    corpus.check()
    if isinstance(corpus, TaskCorpus) and cfg.split != "train":
        corpus = corpus.without_training()
    return corpus, _encoded(corpus.for_test() if cfg.split == "test" else corpus, saved, lines=lines)


def _encoded(corpus: Corpus | Mixture, saved: SavedModel, *, lines: bool) -> RunData:
    """The tokens of a data set with the tokenizer of a run.

    Raises:
        UserError: the tokenizer has no ids for some of its text.
    """
    data = open_data(corpus, FixedTrainer(saved.tokenizer), lines=lines)
    if data.tokenizer.vocab_size != saved.tokenizer.vocab_size:
        hint = "the data set contains characters that the tokenizer has no ids for"
        raise UserError("the run's tokenizer cannot encode this data set", key="run", value=str(saved.path), hint=hint)
    return data


def _per_word(nats: float, corpus: Corpus | Mixture, split: str) -> dict[str, float]:
    """The perplexity per word as papers on WikiText report it: per whitespace-separated word of the text as it is
    distributed, before cleaning; nothing for other data sets."""
    words = corpus.count_words(split, ContentHashes(cache_root() / "sources"))
    if words is None:
        return {}
    return {f"{split}/word_ppl": perplexity(nats / words), f"{split}/words": words}


class _TokenProgress:
    """Counts evaluated tokens, and shows a bar on standard error where that is a terminal."""

    def __init__(self, total: int) -> None:
        self.done = 0
        self._bar = Progress(
            console=Console(stderr=True), transient=True, disable=not (sys.stderr.isatty() and shows("INFO"))
        )
        self._task = self._bar.add_task("evaluating", total=total)

    def __enter__(self) -> "_TokenProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int) -> None:
        self.done = done
        self._bar.update(self._task, completed=done)


def _show(result: dict[str, Any]) -> None:
    split = result["split"]
    metrics = [f"{split}/{name}" for name in METRICS if f"{split}/{name}" in result]
    metrics += [key for key in result if key.startswith(f"{split}/") and key.count("/") == 2]
    metrics += [key for key in result if key.startswith(f"{split}/reward")]
    figures = [(name, f"{result[name]:.4f}") for name in metrics]
    if f"{split}/word_ppl" in result:
        figures.append((f"{split}/{WORD_PERPLEXITY}", f"{result[f'{split}/word_ppl']:.4f}"))
    figures += answer_rows(result)
    rows = list(figures)
    if "prompts" in result:
        rows += [("prompts", f"{result['prompts']:,}"), ("tools", result["tools"] or "none")]
    else:
        seq_len, stride = result["seq_len"], result["stride"]
        window = f"{seq_len}, stride {stride}" if stride != seq_len else str(seq_len)
        rows += [("tokens", f"{result['tokens']:,}"), ("window", window)]
    rows += [
        ("precision", result["precision"] + (f", {result['quantize']} weights" if result["quantize"] else "")),
        ("checkpoint", result["checkpoint"]),
        ("seconds", f"{result['seconds']:.1f}"),
    ]
    columns = [Column(name="name"), Column(name="value")]
    Table(columns=columns, rows=rows, bold=range(len(figures)), header=False).show()
