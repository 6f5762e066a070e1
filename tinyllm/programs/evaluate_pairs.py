"""Evaluation of a run on preferences: the metrics of its own objective."""

import time
from functools import partial
from typing import Any

from omegaconf import DictConfig

from tinyllm.config.build import build
from tinyllm.config.targets import Option
from tinyllm.data.batch import PAIRS
from tinyllm.data.preferences.corpus import PreferenceCorpus
from tinyllm.data.preferences.pairs import PairData
from tinyllm.errors import UserError
from tinyllm.programs.builders import build_objective, build_template
from tinyllm.programs.load_model import SavedModel, model_of
from tinyllm.runs.checkpoint import verify
from tinyllm.runs.state_schema import read_checked
from tinyllm.tokenizers.pretrained import FixedTrainer
from tinyllm.training.objectives.evaluation import evaluate_objective
from tinyllm.training.objectives.pairs import LikelihoodObjective
from tinyllm.utils.device import autocast, pick_device, pick_precision
from tinyllm.utils.tables import Column, Table

TEXT_ONLY = ("stride", "eval_tokens", "quantize")
"""Settings that have no meaning for pairs."""


def pairs_to_evaluate(cfg: DictConfig, saved: SavedModel, *, allow: frozenset[Option]) -> PreferenceCorpus | None:
    """The preferences of the command line, or those that the run was trained on; None: the data are a text."""
    node = saved.cfg.get("dataset") if cfg.dataset is None else cfg.dataset
    if node is None or not str(node.get("_target_")).startswith(PreferenceCorpus.__module__):
        return None
    corpus = build(node, path="dataset", allow=allow, chat_template=build_template(saved.cfg, allow=allow))
    assert isinstance(corpus, PreferenceCorpus)
    return corpus


def evaluate_pairs(
    cfg: DictConfig, saved: SavedModel, corpus: PreferenceCorpus, run: str, *, allow: frozenset[Option]
) -> dict[str, Any]:
    """The metrics of the run's objective on a split of preferences, and the settings they were computed with.

    Raises:
        UserError: the run's objective reads no pairs or lacks the reference for them, or the data have changed.
    """
    for key in TEXT_ONLY:
        if cfg[key] is not None:
            hint = "it applies to texts, and the data are pairs of answers; leave it out"
            raise UserError("the key has no effect here", key=key, value=cfg[key], hint=hint)
    if cfg.split == "test":
        raise UserError("the data set has no test split", key="split", value="test", hint="use val or train")
    device = pick_device(cfg.device, key="device")
    precision = pick_precision(cfg.precision, device)
    if cfg.dataset is None:
        corpus.pin(saved.data.get("revision"))
    corpus.check()
    data = corpus.prepare(FixedTrainer(saved.tokenizer))
    is_own = {name: saved.data.get(name) for name in ("train", "val")} == {
        name: data.fingerprints()[name] for name in ("train", "val")
    }
    if cfg.dataset is None and not is_own:
        hint = "restore the old files, or name others with dataset=preferences dataset.path=<file>"
        raise UserError("the preferences differ from those the run was trained on", key="run", value=run, hint=hint)
    model = model_of(saved, weights=cfg.weights, device=device, allow=allow, scores=True)
    objective = build_objective(saved.cfg, model, allow=allow)
    if objective.scores_answers:
        data = data.with_last_tokens()
    if objective.reads != PAIRS:
        hint = "it was trained on texts; evaluate it on those, or a run trained on pairs"
        raise UserError("the run's objective compares no answers", key="run", value=run, hint=hint)
    seq_len = cfg.seq_len or saved.cfg.trainer.seq_len or saved.cfg.model.max_seq_len
    split = data.splits(cfg.split)[""]
    if isinstance(objective, LikelihoodObjective) and objective.needs_reference:
        objective.reference = _reference(saved, data, run, is_own=is_own)
        if cfg.split == "train" and bool(objective.reference[: data.train.n_pairs].isnan().any()):
            hint = "training did not use all of its pairs, and the reference was read for those that it used; use val"
            raise UserError("the reference of some pairs was not read", key="split", value="train", hint=hint)
    start = time.perf_counter()
    metrics = evaluate_objective(
        objective,
        split.eval_batches(seq_len=seq_len, batch_size=cfg.batch_size or saved.cfg.trainer.batch_size),
        device=device,
        autocast=partial(autocast, device, precision),
        name=cfg.split,
    )
    return metrics | {
        "checkpoint": str(saved.path),
        "step": saved.step,
        "split": cfg.split,
        "pairs": len(split.fitting(seq_len)),
        "seq_len": seq_len,
        "precision": precision,
        "seconds": round(time.perf_counter() - start, 2),
    }


def _reference(saved: SavedModel, data: PairData, run: str, *, is_own: bool) -> Any:
    """The log-probabilities of the pairs before training, from the checkpoint.

    Raises:
        UserError: the pairs are not those of the run.
    """
    if not is_own:
        hint = (
            "it compares with the weights that its training started from, and knows what they say of its own pairs only"
        )
        raise UserError("the run has no reference for these pairs", key="run", value=run, hint=hint)
    reference = read_checked(verify(saved.path)).get("reference")
    if reference is None or len(reference) != data.n_pairs:
        raise UserError("the checkpoint has no reference for its pairs", file=saved.path, hint="train the run again")
    return reference


def show_pairs(result: dict[str, Any]) -> None:
    """Print the metrics of an evaluation on preferences."""
    split = result["split"]
    figures = [(name, f"{value:.4f}") for name, value in result.items() if name.startswith(f"{split}/")]
    figures += [("pairs", f"{result['pairs']:,}"), ("checkpoint", result["checkpoint"])]
    Table(columns=[Column(name=""), Column(name="", right=True)], rows=[list(row) for row in figures]).show()
