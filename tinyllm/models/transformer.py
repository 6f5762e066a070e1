"""The decoder-only transformer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinyllm.models.block import Block
from tinyllm.models.layerdrop import draw_active_blocks, skip
from tinyllm.models.layers import BlockFactory
from tinyllm.models.parametrization import Parametrization, Standard
from tinyllm.nn.attention.masking import document_positions
from tinyllm.nn.cache import Cache
from tinyllm.nn.feedforward import Routing
from tinyllm.nn.grouped_linear import GroupedLinear
from tinyllm.nn.inference_linear import reorder_
from tinyllm.nn.linear import Linear
from tinyllm.nn.position import Position
from tinyllm.utils.signatures import make
from tinyllm.utils.tensors import autocast_dtype

ParameterKind = Literal["matrix", "head", "embedding", "vector"]


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters; a tied table counts once.

    Attributes:
        total: all of them.
        active: those that one token passes through.
        embedding: those in look-up tables (tokens, learned positions; a tied head is the token table).
    """

    total: int
    active: int
    embedding: int


MOST_LAYERS = 10_000
"""More would take minutes to make before anything could refuse them; the deepest models tried have a thousand."""


class Transformer(nn.Module):
    """Pre-norm decoder: token ids to the hidden states before the head.

    The head and its loss are not in ``forward``: training takes the loss from the hidden states in chunks,
    generation
    needs the last position only.

    Args:
        vocab_size, d_model, n_layers, n_heads, n_kv_heads, d_ff, max_seq_len: the shape.
        bias: biases in linear layers and in LayerNorm.
        tie_embeddings: the head is the embedding table.
        parallel_block: attention and feed-forward side by side, see ``Block``.
        scaled_init: projections into the residual stream start 1/√(2·n_layers) smaller (Radford et al. 2019).
        init_std: standard deviation of the weights at the start.
        dropout: on the embeddings and on what each part adds to the residual stream.
        attn_dropout: on the attention weights.
        layerdrop: probability with which the deepest block is left out in training, see ``models.layerdrop``.
        block, norm, pos: factories of the layers, the norms and the position object; each gets the arguments that its
            constructor names (``tinyllm.utils.signatures.make``).
        layers: makes the list of the layers' factories, of what it names of ``block`` and ``n_layers``.
        parametrization: how initial weights, learning rates and multipliers follow the width.

    Attributes:
        output_multiplier: factor on the hidden states, and so on the logits.
        scaling: of the matrices whose learning rates follow the width, by name; for the optimizer.
        kinds: per block, the first block of its kind.
        recompute_every: in training, every so many blocks one keeps its input alone and is computed again for the
            backward pass (Chen et al. 2016, https://arxiv.org/abs/1604.06174); 0: none.

    Raises:
        ValueError: a number that is out of range, or two that do not go together.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        n_kv_heads: int,
        d_ff: int,
        max_seq_len: int,
        bias: bool,
        tie_embeddings: bool,
        parallel_block: bool,
        scaled_init: bool,
        init_std: float,
        dropout: float,
        attn_dropout: float,
        layerdrop: float,
        block: BlockFactory,
        norm: Callable[..., nn.Module],
        pos: Callable[..., Position],
        layers: Callable[..., list[BlockFactory]],
        parametrization: Parametrization,
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        positive = {"vocab_size": vocab_size, "d_model": d_model, "n_layers": n_layers, "max_seq_len": max_seq_len}
        for name, size in positive.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        for name, p in {"dropout": dropout, "layerdrop": layerdrop}.items():
            if not 0 <= p < 1:
                raise ValueError(f"{name}={p} must be at least 0 and less than 1")
        if init_std <= 0:
            raise ValueError(f"init_std={init_std} must be positive")
        if n_layers > MOST_LAYERS:
            raise ValueError(f"n_layers={n_layers} must be at most {MOST_LAYERS}")
        self.vocab_size, self.d_model, self.n_layers = vocab_size, d_model, n_layers
        self.max_seq_len, self.dropout, self.layerdrop = max_seq_len, dropout, layerdrop
        self.recompute_every = 0
        self.init_std = init_std
        self.residual_std = init_std / (2 * n_layers) ** 0.5 if scaled_init else init_std

        self.embedding = nn.Embedding(vocab_size, d_model, _weight=torch.empty(vocab_size, d_model))
        self.pos: Position = make(pos, d_model=d_model, max_seq_len=max_seq_len)
        self.norm = make(norm, dim=d_model, bias=bias)
        factories = make(layers, block=block, n_layers=n_layers)
        self.kinds = [factories.index(factory) for factory in factories]
        self.blocks = nn.ModuleList(
            make(
                factory,
                norm=norm,
                pos=self.pos,
                d_model=d_model,
                n_heads=n_heads,
                n_kv_heads=n_kv_heads,
                d_ff=d_ff,
                max_seq_len=max_seq_len,
                bias=bias,
                norm_eps=self.norm.eps,
                dropout=dropout,
                attn_dropout=attn_dropout,
                parallel_block=parallel_block,
            )
            for factory in factories
        )
        self.head: nn.Module | None = None if tie_embeddings else Linear(d_in=d_model, d_out=vocab_size, bias=False)
        self.output_multiplier, self.matrix_scalings = parametrization.apply(
            self,
            partial(Transformer, **settings | {"parametrization": Standard()}),
            shape={"d_model": d_model, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "d_ff": d_ff},
        )
        if self.embedding.weight.device.type != "meta":
            self.init_weights()

    def resize_vocabulary(self, vocab_size: int) -> None:
        """Replace the token table and the head of a model on ``meta``, where they hold no weights, by another size."""
        assert self.embedding.weight.is_meta
        self.vocab_size = vocab_size
        with torch.device("meta"):
            self.embedding = nn.Embedding(vocab_size, self.d_model, _weight=torch.empty(vocab_size, self.d_model))
            if self.head is not None:
                self.head = Linear(d_in=self.d_model, d_out=vocab_size, bias=False)
        scaling = self.matrix_scalings.get("head.weight")
        if scaling is not None:  # the head has the same rows, one per token, in the base model
            here, base = (vocab_size, scaling.shape[1]), (vocab_size, scaling.base_shape[1])
            self.matrix_scalings["head.weight"] = replace(scaling, shape=here, base_shape=base)

    def forward(self, ids_BT: Tensor, *, cache: Cache | None = None, doc_ids: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, C) for the head; see :meth:`run`."""
        return Transformer.run(self, ids_BT, cache=cache, doc_ids=doc_ids)[0]

    def run(
        self,
        ids_BT: Tensor,
        *,
        cache: Cache | None = None,
        active_blocks: Sequence[bool] | None = None,
        doc_ids: Tensor | None = None,
    ) -> tuple[Tensor, list[Routing | None]]:
        """Hidden states (B, T, C) for the head, and the routing of each block's mixture of experts.

        The hidden states are those after the final norm, times the output multiplier.

        Args:
            cache: holds the tokens before these; it advances by T.
            active_blocks: the blocks to pass through, from :meth:`draw_active_blocks`; None: all.
            doc_ids: (B, T) integers, the document of each token, where a row holds several documents. Tokens of a
                document are contiguous; they attend to each other only, and their positions begin at 0.

        Raises:
            ValueError: a position beyond ``max_seq_len`` or beyond the cache; ``doc_ids`` of another shape, or with a
                cache.
        """
        if doc_ids is not None and (cache is not None or doc_ids.shape != ids_BT.shape):
            reason = "a cache" if cache is not None else f"ids of shape {tuple(ids_BT.shape)}"
            raise ValueError(f"doc_ids of shape {tuple(doc_ids.shape)} cannot be combined with {reason}")
        end = ids_BT.shape[1] + (0 if cache is None else cache.length)
        limit = self.max_seq_len if cache is None else min(self.max_seq_len, cache.max_len)
        if end > limit:
            raise ValueError(
                f"{end} positions do not fit: the context ends at {limit} (max_seq_len={self.max_seq_len})"
            )
        start: int | Tensor = 0 if cache is None else cache.start
        if doc_ids is not None:
            start = document_positions(doc_ids)
        x_BTC = self.pos.embed(self.embedding(ids_BT), start)
        if self.dropout:
            x_BTC = F.dropout(x_BTC, self.dropout, self.training)
        routings: list[Routing | None] = []
        for i, block in enumerate(self.blocks):
            if active_blocks is None or active_blocks[i]:
                layer_cache = None if cache is None else cache.layers[i]
                if self.training and self.recomputes(i):
                    x_BTC, routing = checkpoint(
                        block, x_BTC, start=start, cache=layer_cache, doc_ids=doc_ids, use_reentrant=False
                    )
                else:
                    x_BTC, routing = block(x_BTC, start=start, cache=layer_cache, doc_ids=doc_ids)
                routings.append(routing)
            else:
                x_BTC = skip(x_BTC, block.parameters())
                routings.append(None)
        if cache is not None:
            cache.advance(ids_BT.shape[1])
        hidden_BTC = self.norm(x_BTC)
        return hidden_BTC if self.output_multiplier == 1 else hidden_BTC * self.output_multiplier, routings

    def recomputes(self, block: int) -> bool:
        """Whether a block is computed again for the backward pass."""
        return self.recompute_every > 0 and block % self.recompute_every == 0

    def draw_active_blocks(self, seed: int) -> list[bool] | None:
        """The blocks that one micro-batch in training passes through; None: all of them."""
        return draw_active_blocks(self.layerdrop, self.n_layers, seed=seed)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.embedding.weight.device

    @property
    def head_weight(self) -> nn.Parameter:
        """(vocab_size, d_model): what hidden states are multiplied with to give logits."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, d_model) → (…, vocab_size)."""
        logits: Tensor = F.linear(hidden, self.head_weight) if self.head is None else self.head(hidden)
        return logits

    def for_inference(self, dtype: torch.dtype) -> None:
        """Change every weight, for good, into the form in which a model that computes in ``dtype`` reads it fastest.

        The outputs stay those of autocast to that format (of none, if it is the weights' own). The model can be called
        as before, and not trained or saved any more. In fp32 it takes no memory; in half precision the matrices are
        rounded copies in place of themselves, and a tied table is kept beside that of the head.
        """
        tied, table = self.head is None, self.embedding.weight
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, Linear | GroupedLinear):
                    setattr(module, name, child.for_inference(dtype))
        if tied and dtype == table.dtype:
            reorder_(table)
        elif tied:
            with torch.device("meta"):
                head = Linear(d_in=self.d_model, d_out=self.vocab_size, bias=False)
            head.weight = table
            self.head = head.for_inference(dtype)

    def make_cache(
        self,
        batch_size: int,
        max_len: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Cache:
        """An empty cache for ``max_len`` positions; by default on the model's device and in the dtype that
        attention
        computes in there (autocast's where it is on, else the weights')."""
        where = self.device if device is None else torch.device(device)
        if dtype is None:
            dtype = autocast_dtype(where, self.embedding.weight.dtype)
        layers = [b.attn.make_cache(batch_size, max_len, device=where, dtype=dtype) for b in self.layers()]
        return Cache(layers, max_len=max_len)

    def init_weights(self) -> None:
        """Draw every weight from torch's global generator, in one fixed order, and fill the tables."""
        for _, fill in self.parts():
            fill()

    def parts(self) -> list[tuple[nn.Module, Callable[[], object]]]:
        """Parts that are the whole model together, each with what draws its weights, in the order of drawing."""
        std, residual_std = self.init_std, self.residual_std
        parts: list[tuple[nn.Module, Callable[[], object]]] = [
            (self.embedding, lambda: nn.init.normal_(self.embedding.weight, std=std)),
            (self.pos, partial(self.pos.init_weights, std)),
        ]
        parts += [(one, partial(one.init_weights, std=std, residual_std=residual_std)) for one in self.layers()]
        parts.append((self.norm, self.norm.init_weights))
        if isinstance(self.head, Linear):
            parts.append((self.head, partial(self.head.init_weights, std)))
        return parts

    def parameter_kinds(self) -> dict[str, ParameterKind]:
        """What each parameter is: the matrix of a linear layer, that of an untied head, a look-up table, or anything
        else."""
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        stacked = {id(m.bias) for m in self.modules() if isinstance(m, GroupedLinear)}  # a vector per expert
        head = self.head_weight

        def kind(parameter: nn.Parameter) -> ParameterKind:
            if id(parameter) in tables:
                return "embedding"
            if parameter is head:
                return "head"
            return "matrix" if parameter.ndim >= 2 and id(parameter) not in stacked else "vector"

        return {name: kind(parameter) for name, parameter in self.named_parameters()}

    def parameter_counts(self) -> ParameterCounts:
        """How many parameters there are."""
        kinds = self.parameter_kinds()
        sizes = {name: p.numel() for name, p in self.named_parameters()}
        total = sum(sizes.values())
        inactive = sum(block.ffn.inactive_parameters() for block in self.layers())
        embedding = sum(n for name, n in sizes.items() if kinds[name] == "embedding")
        return ParameterCounts(total=total, active=total - inactive, embedding=embedding)

    def flops_per_token(self, context: int) -> int:
        """Floating-point operations of the forward pass, head included, for one token that attends to
        ``context`` keys.

        Matrix products only, a multiplication and an addition each; attention as if nothing were masked,
        which is
        the convention of ``torch.utils.flop_counter``. The backward pass takes twice as many.
        """
        return self._head_flops() + sum(block.flops_per_token(context) for block in self.layers())

    def decode_flops_per_token(self, context: int) -> int:
        """The same for one token that continues a cache of ``context`` positions, itself included."""
        return self._head_flops() + sum(block.decode_flops_per_token(context) for block in self.layers())

    def _head_flops(self) -> int:
        return 2 * self.vocab_size * self.d_model

    def cache_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of the cache for one position of one sequence, while no window is full."""
        return sum(block.attn.cache_bytes_per_token(dtype) for block in self.layers())

    def cache_bytes(self, max_len: int, dtype: torch.dtype) -> int:
        """Bytes of the cache of one sequence of ``max_len`` positions, of which a window holds its last."""
        parts = (block.attn for block in self.layers())
        return sum(attn.cache_slots(max_len) * attn.cache_bytes_per_token(dtype) for attn in parts)

    def layers(self) -> list[Block]:
        """The blocks, in the order of the forward pass."""
        return cast(list[Block], list(self.blocks))
