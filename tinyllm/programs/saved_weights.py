"""The weights on disk that a run starts from, or that its adapters are added to (LoRA)."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from tinyllm.config.saved import saved_config
from tinyllm.config.targets import Option
from tinyllm.errors import UserError
from tinyllm.interop.directory import is_model
from tinyllm.models.score_head import HEAD, SCORE
from tinyllm.nn.lora import MATRICES, merged
from tinyllm.programs.builders import META, build_model
from tinyllm.programs.saved_model import open_hugging_face
from tinyllm.runs.checkpoint import Checkpoint, check_shapes, find
from tinyllm.runs.layout import CONFIG, TOKENIZER
from tinyllm.runs.tensor_files import MODEL, Weights
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers import load as load_tokenizer
from tinyllm.utils.files import sha256

ADAPTERS = "adapters"
"""The manifest's entry of a checkpoint that holds adapters only: the weights they belong to, and their scale."""
REFERENCE = "reference"
"""The manifest's entry of a run that is compared with the weights it started from: which they are."""

TABLES = ("embedding.weight", HEAD)
"""The tensors with a row per token."""


class LoadedWeights:
    """Tensors in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        return self._tensors[name] if rows is None else self._tensors[name][rows]


class ScoringWeights:
    """Weights of a language model, or of a reward model, for the start of a reward model.

    The head over the vocabulary is left out; a score head that is missing is zeros (``models.score_head``).
    """

    def __init__(self, base: Weights) -> None:
        self._base = base

    def names(self) -> list[str]:
        return [*(name for name in self._base.names() if name not in (HEAD, SCORE)), SCORE]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name) if self._has(name) else (1, self._base.shape(TABLES[0])[1])

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        return self._base.read(name, rows) if self._has(name) else torch.zeros(self.shape(name))[rows or slice(None)]

    def _has(self, name: str) -> bool:
        return name in self._base.names()


class MergedWeights:
    """Weights with adapters added, in fp32: those of a model that computes what the adapted one does.

    Args:
        base: without the adapters.
        adapters: of linear layers of ``base``; and a score head, which takes the place of that of ``base``.
        scale: factor on the adapters' outputs.
        file: holds the adapters, for error messages.

    Raises:
        UserError: the adapters do not fit the weights.
    """

    def __init__(self, base: Weights, adapters: Weights, *, scale: float, file: Path) -> None:
        self._base, self._adapters, self._scale = base, adapters, scale
        self._whole = {SCORE}.intersection(adapters.names())
        if self._whole:
            self._base = base = ScoringWeights(base)
        self._layers = {name.rpartition(".")[0] for name in adapters.names() if name not in self._whole}
        weights = set(base.names())
        for layer in sorted(self._layers):
            name, (a, b) = f"{layer}.weight", self._matrices(layer)
            shapes = [adapters.shape(one) if one in adapters.names() else () for one in (a, b)]
            wanted = base.shape(name) if name in weights else ()
            if len(shapes[0]) < 2 or wanted != (*shapes[1][:-1], shapes[0][-1]) or shapes[0][-2] != shapes[1][-1]:
                hint = f"the adapter of {layer} has shapes {shapes[0]} and {shapes[1]}, the layer {wanted or 'none'}"
                raise UserError("the adapters do not fit the weights", file=file, hint=hint)

    @staticmethod
    def _matrices(layer: str) -> list[str]:
        return [f"{layer}.{matrix}" for matrix in MATRICES]

    def names(self) -> list[str]:
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        if name in self._whole:
            return self._adapters.read(name, rows).float()
        weight = self._base.read(name, rows).float()
        layer, _, kind = name.rpartition(".")
        if kind != "weight" or layer not in self._layers:
            return weight
        a, b = self._matrices(layer)
        stacked = len(self._base.shape(name)) > 2  # rows are experts then, in all three
        lora_a, lora_b = self._adapters.read(a, rows if stacked else None), self._adapters.read(b, rows)
        return merged(weight, lora_a.float(), lora_b.float(), scale=self._scale)


class GrownWeights:
    """Weights whose token table, and head if there is one, have rows for appended tokens.

    A new row is the mean of the rows of the old tokens: its logit is the mean of theirs, so a new token is neither
    likely nor excluded, and the old logits keep their bits (Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html).

    Args:
        base: with fewer rows.
        old: number of ids of the old tokenizer.
        new: number of ids of the new one.
        rows: of the new tables, at least ``new``; those beyond it belong to no token.
    """

    def __init__(self, base: Weights, *, old: int, new: int, rows: int) -> None:
        self._base, self._old, self._new, self._rows = base, old, new, rows

    def names(self) -> list[str]:
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._base.shape(name)
        return (self._rows, *shape[1:]) if name in TABLES else shape

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        if name not in TABLES:
            return self._base.read(name, rows)
        table = self._base.read(name)
        mean = table[: self._old].double().mean(0).to(table.dtype)
        grown = torch.cat([table, mean.expand(max(0, self._rows - len(table)), -1)])
        grown[self._old : self._new] = mean  # of a padded table, these rows were there and never meant anything
        return grown if rows is None else grown[rows]


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """Weights of a saved model and what is known about them.

    Attributes:
        path: a checkpoint or a directory in Hugging Face format.
        shapes: of the tensors by name.
        open: gives the tensors; adapters, if it holds any, are added.
        digest: sha256 that identifies the weights.
        cfg: the configuration of the model, resolved.
        settings: of a Hugging Face model, the overrides that compose it.
        tokenizer_fingerprint: of the tokenizer that the model was trained with.
        tokenizer: loads it.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    open: Callable[[], Weights]
    digest: str
    cfg: DictConfig
    settings: list[str]
    tokenizer_fingerprint: str
    tokenizer: Callable[[], Tokenizer]

    def check_fits(self, wanted: Mapping[str, Tensor], *, key: str) -> None:
        """Check that names and shapes are those of a model's tensors, without reading the weights.

        Raises:
            UserError: they differ; the message names the first tensor that differs, and for a Hugging Face model the
                settings that compose it.
        """
        try:
            check_shapes(self.shapes, wanted, file=self.path)
        except UserError as error:
            if not self.settings:
                raise
            composed = " ".join(setting for setting in self.settings if not setting.startswith("tokenizer"))
            hint = f"{error.hint}; its architecture is {composed}"
            raise UserError(error.what, key=key, value=str(self.path), hint=hint) from error

    def grown(self, *, old: int, new: int, rows: int) -> "WeightSource":
        """These weights with rows for appended tokens; see :class:`GrownWeights`."""
        shapes = {name: (rows, *shape[1:]) if name in TABLES else shape for name, shape in self.shapes.items()}
        return replace(self, shapes=shapes, open=lambda: GrownWeights(self.open(), old=old, new=new, rows=rows))

    def for_scores(self) -> "WeightSource":
        """These weights for the start of a reward model; see :class:`ScoringWeights`."""
        names = [name for name in self.shapes if name not in (HEAD, SCORE)]
        score = self.shapes.get(SCORE, (1, self.shapes[TABLES[0]][1]))
        shapes = {**{name: self.shapes[name] for name in names}, SCORE: score}
        return replace(self, shapes=shapes, open=lambda: ScoringWeights(self.open()))

    def as_base(self, *, folder: Path, **more: Any) -> dict[str, Any]:
        """The manifest's entry of checkpoints in ``folder`` that need these weights."""
        path = self.path.absolute()
        relative = os.path.relpath(path, folder.absolute())  # found again when both are moved together
        return {"base": str(path), "relative": relative, "weights": self.digest, **more}


def open_weights(
    where: str | Path,
    *,
    key: str,
    allow: frozenset[Option] = frozenset(),
    tell: Callable[[str], None] = lambda text: None,
) -> WeightSource:
    """The weights of a run, a checkpoint or a Hugging Face directory, not read yet.

    Args:
        key: the setting that gave ``where``, for messages.
        tell: called with a sentence when a damaged checkpoint is skipped.

    Raises:
        UserError: there are none, or those that its adapters belong to are missing or have changed.
    """
    if is_model(where):
        saved = open_hugging_face(where, tell=tell)
        model = build_model(saved.cfg, vocab_size=saved.tokenizer.vocab_size, seed=0, device=META, allow=allow)
        return WeightSource(
            path=saved.path,
            shapes={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
            open=lambda: LoadedWeights(saved.weights("raw")),  # read only when needed: it takes all of them at once
            digest=digest_at(saved.path),
            cfg=saved.cfg,
            settings=saved.settings,
            tokenizer_fingerprint=saved.data["tokenizer"],
            tokenizer=lambda: saved.tokenizer,
        )
    checkpoint = find(where, tell=tell, key=key)
    checkpoint.require("data.tokenizer")
    weights = with_adapters(checkpoint, checkpoint.tensors())
    return WeightSource(
        path=checkpoint.path,
        shapes={name: weights.shape(name) for name in weights.names()},
        open=lambda: weights,
        digest=checkpoint_digest(checkpoint),
        cfg=saved_config(checkpoint.path / CONFIG, allow=allow),
        settings=[],
        tokenizer_fingerprint=checkpoint.manifest["data"]["tokenizer"],
        tokenizer=lambda: load_tokenizer(checkpoint.path / TOKENIZER),
    )


def with_adapters(checkpoint: Checkpoint, weights: Weights) -> Weights:
    """The weights of a checkpoint as a model without adapters has them.

    Args:
        weights: of the checkpoint: all of a model's, or adapters.

    Raises:
        UserError: the weights that the adapters belong to are missing or have changed.
    """
    base = base_of(checkpoint)
    if base is None:
        return weights
    scale = float(checkpoint.manifest[ADAPTERS]["scale"])
    return MergedWeights(base.open(), weights, scale=scale, file=checkpoint.path)


def base_of(checkpoint: Checkpoint, *, allow: frozenset[Option] = frozenset()) -> WeightSource | None:
    """The weights that the adapters of a checkpoint belong to; None: it holds all weights itself.

    Raises:
        UserError: they are missing or have changed.
    """
    needs = f"{checkpoint.path} holds adapters alone"
    return _named_weights(
        checkpoint, ADAPTERS, what="the weights that the adapters belong to", needs=needs, allow=allow
    )


def reference_of(checkpoint: Checkpoint, *, allow: frozenset[Option] = frozenset()) -> WeightSource | None:
    """The weights that a run is compared with; None: none.

    Raises:
        UserError: they are missing or have changed.
    """
    what, needs = "the weights that the run started from", "objective.beta compares with them in every step"
    return _named_weights(checkpoint, REFERENCE, what=what, needs=needs, allow=allow)


def _named_weights(
    checkpoint: Checkpoint, name: str, *, what: str, needs: str, allow: frozenset[Option]
) -> WeightSource | None:
    """The weights that an entry of the manifest names; None: there is no such entry.

    Args:
        what: these weights, for messages.
        needs: why they are needed.
    """
    entry = checkpoint.manifest.get(name)
    if entry is None:
        return None
    if not _is_entry(entry, has_scale=name == ADAPTERS):
        raise UserError("damaged manifest", file=checkpoint.path, hint=f"{name} has an unexpected value")
    places = dict.fromkeys(
        [Path(entry["base"]), Path(os.path.normpath(checkpoint.path.absolute() / entry["relative"]))]
    )
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        hint = f"{needs}; put the run or model they are from back there"
        raise UserError(f"{what} are missing", file=entry["base"], hint=hint)
    # Compared before anything is read through it, so that no manifest can lead in a circle.
    if digest_at(found) != entry["weights"]:
        hint = f"those of {checkpoint.path} were trained on others; restore them"
        raise UserError(f"{what} have changed", file=found, hint=hint)
    return open_weights(found, key="run", allow=allow)


def digest_at(path: Path) -> str:
    """:attr:`WeightSource.digest` of a checkpoint or Hugging Face directory."""
    if is_model(path):
        return digest_of({file.name: sha256(file) for file in sorted(path.glob("*.safetensors"))})
    return checkpoint_digest(find(path))


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """sha256 that identifies the weights of a checkpoint, those that its adapters belong to included."""
    stem = MODEL.partition(".")[0]
    files = {name: facts["sha256"] for name, facts in checkpoint.manifest["files"].items() if name.startswith(stem)}
    entry = checkpoint.manifest.get(ADAPTERS, {})
    return digest_of(files, *(entry.get(name) for name in ("weights", "scale") if name in entry))


def digest_of(files: Mapping[str, str], *more: Any) -> str:
    """sha256 of the hashes of weight files by name."""
    return hashlib.sha256(json.dumps([dict(files), *more], sort_keys=True).encode()).hexdigest()


def _is_entry(entry: Any, *, has_scale: bool) -> bool:
    texts = ("base", "relative", "weights")
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), str) for name in texts)
        and (not has_scale or (isinstance(entry.get("scale"), float) and math.isfinite(entry["scale"])))
    )
