"""The decoder-only transformer."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinyllm.models.block import Block
from tinyllm.models.counts import ParameterCounts, ParameterKind, frozen_flops
from tinyllm.models.decoding import recorded_step
from tinyllm.models.layerdrop import draw_active_blocks, skip
from tinyllm.models.layers import BlockFactory
from tinyllm.models.parametrization import Parametrization, Standard, stacked_vectors
from tinyllm.nn.attention.base import MaskedAttention
from tinyllm.nn.attention.masking import document_positions
from tinyllm.nn.cache import Cache
from tinyllm.nn.decode_kernels import DecodeKernels
from tinyllm.nn.decode_step import DecodeStep
from tinyllm.nn.feedforward import Routing
from tinyllm.nn.grouped_linear import GroupedLinear
from tinyllm.nn.inference_linear import InferenceForm, reorder_
from tinyllm.nn.linear import Linear, resized_rows
from tinyllm.nn.position import Position
from tinyllm.utils.signatures import make
from tinyllm.utils.tensors import autocast_dtype

MAX_LAYERS = 10_000
"""A larger n_layers, likely a typo, would take minutes to build before any other check could refuse it."""


class Transformer(nn.Module):
    """Pre-norm decoder: token ids to the hidden states before the head.

    ``forward`` stops before the head: training computes head and loss in chunks (``tinyllm.nn.loss``), generation needs
    the logits of the last position only. Training calls :meth:`forward_with_routing`, which also returns the routing
    statistics of mixtures of experts.

    Args:
        vocab_size, d_model, n_layers, n_heads, n_kv_heads, d_ff, max_seq_len: the shape.
        bias: biases in linear layers and in LayerNorm.
        tie_embeddings: the head is the embedding table.
        parallel_block, short_conv: of every block, see ``Block``.
        document_mask: attention stays within documents and positions restart in each, where ``doc_ids`` are given;
            without it they are ignored.
        scaled_init: scale the initial projections into the residual stream by 1/√(2·n_layers) (Radford et al. 2019).
        init_std: standard deviation of the initial weights.
        dropout: on the embeddings and on the outputs of attention and feed-forward.
        attn_dropout: on the attention weights.
        layerdrop: probability of skipping the deepest block in training, see ``models.layerdrop``.
        block, norm, pos: factories of the blocks, the norms and the position object; each is called with the arguments
            that its constructor names (``tinyllm.utils.signatures.make``; ``Block`` lists those of its parts).
        layers: called with ``block`` and ``n_layers``, returns one block factory per layer.
        parametrization: how initial weights, learning rates and multipliers depend on the width.

    Attributes:
        output_multiplier: factor on the final hidden states, and so on the logits.
        matrix_scalings: by parameter name, for matrices whose learning rate depends on the width; for the optimizer.
        first_of_kind: for each block, the index of the first block of the same kind.
        recompute_every: activation checkpointing: one block in ``recompute_every`` saves only its input and is
            recomputed in the backward pass (Chen et al. 2016, https://arxiv.org/abs/1604.06174); 0: none.

    Raises:
        ValueError: a number is out of range, or sizes do not match.
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
        short_conv: int,
        document_mask: bool,
        block: BlockFactory,
        norm: Callable[..., nn.Module],
        pos: Callable[..., Position],
        layers: Callable[..., list[BlockFactory]],
        parametrization: Parametrization,
    ) -> None:
        # kept so that the parametrization can build the same model in a different shape
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
        if n_layers > MAX_LAYERS:
            raise ValueError(f"n_layers={n_layers} must be at most {MAX_LAYERS}")
        self.vocab_size, self.d_model, self.n_layers = vocab_size, d_model, n_layers
        self.max_seq_len, self.dropout, self.layerdrop = max_seq_len, dropout, layerdrop
        self.document_mask = document_mask
        self.recompute_every = 0
        self.init_std = init_std
        # 2·n_layers projections add to the residual stream: with this factor their sum has the variance of one.
        self.residual_std = init_std / (2 * n_layers) ** 0.5 if scaled_init else init_std

        # _weight keeps torch from drawing weights of its own: only init_weights may use the random stream.
        self.embedding = nn.Embedding(vocab_size, d_model, _weight=torch.empty(vocab_size, d_model))
        self.pos: Position = make(pos, d_model=d_model, max_seq_len=max_seq_len)
        self.norm = make(norm, dim=d_model, bias=bias)
        factories = make(layers, block=block, n_layers=n_layers)
        # Layers of one kind share a factory, and so their memory estimate.
        self.first_of_kind = [factories.index(factory) for factory in factories]
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
                short_conv=short_conv,
            )
            for factory in factories
        )
        self.head: nn.Module | None = None if tie_embeddings else Linear(d_in=d_model, d_out=vocab_size, bias=False)
        self.decode_step: DecodeStep | None = None  # set by for_inference
        self.score: nn.Module | None = None  # of a reward model, see ``models.score_head``
        # Before init_weights, which reads the std_factor that the parametrization sets on each linear layer.
        self.output_multiplier, self.matrix_scalings = parametrization.apply(
            self,
            partial(Transformer, **settings | {"parametrization": Standard()}),
            shape={"d_model": d_model, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "d_ff": d_ff},
        )
        if self.embedding.weight.device.type != "meta":
            self.init_weights()

    def resize_vocabulary(self, vocab_size: int) -> None:
        """Change the vocabulary size of a model on ``meta``, whose token table and head hold no weights yet."""
        assert self.embedding.weight.is_meta
        self.vocab_size = vocab_size
        self.embedding.num_embeddings = vocab_size
        self.embedding.weight = resized_rows(self.embedding.weight, vocab_size)
        if isinstance(self.head, Linear):
            self.head.resize_outputs(vocab_size)
        scaling = self.matrix_scalings.get("head.weight")
        if scaling is not None:  # the head has the same rows, one per token, in the base model
            shape, base_shape = (vocab_size, scaling.shape[1]), (vocab_size, scaling.base_shape[1])
            self.matrix_scalings["head.weight"] = replace(scaling, shape=shape, base_shape=base_shape)

    def forward(self, ids_BT: Tensor, *, cache: Cache | None = None, doc_ids: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, C) for the head; see :meth:`forward_with_routing`."""
        if self.decode_step is not None and cache is not None and self.decode_step.takes(ids_BT, cache):
            hidden_B1C = self.decode_step(ids_BT, cache)
            return hidden_B1C if self.output_multiplier == 1 else hidden_B1C * self.output_multiplier
        # Called on the class: FSDP wraps the method of the instance, and forward has gathered the weights already.
        return Transformer.forward_with_routing(self, ids_BT, cache=cache, doc_ids=doc_ids)[0]

    def forward_with_routing(
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
            active_blocks: LayerDrop: whether each block runs, from :meth:`draw_active_blocks`; None: all do.
            doc_ids: (B, T) integers, the document of each token, where rows hold several documents. A document is a
                run of equal ids. With ``document_mask`` its tokens attend only to each other, and its positions start
                at 0; without, this is ignored.

        Raises:
            ValueError: a position is beyond ``max_seq_len`` or the cache, or ``doc_ids`` differs in shape from ids_BT
                or is combined with a cache.
        """
        if doc_ids is not None and (cache is not None or doc_ids.shape != ids_BT.shape):
            reason = "a cache" if cache is not None else f"ids of shape {tuple(ids_BT.shape)}"
            raise ValueError(f"doc_ids of shape {tuple(doc_ids.shape)} cannot be combined with {reason}")
        if not self.document_mask:
            doc_ids = None
        end = ids_BT.shape[1] + (0 if cache is None else cache.length)
        limit = self.max_seq_len if cache is None else min(self.max_seq_len, cache.max_len)
        if end > limit:
            raise ValueError(f"{end} positions exceed the context of {limit} (max_seq_len={self.max_seq_len})")
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
                    # non-reentrant: takes keyword arguments, and inputs that need no gradient
                    x_BTC, routing = checkpoint(
                        block, x_BTC, start=start, cache=layer_cache, doc_ids=doc_ids, use_reentrant=False
                    )
                else:
                    x_BTC, routing = block(x_BTC, start=start, cache=layer_cache, doc_ids=doc_ids)
                routings.append(routing)
            else:  # zero gradients rather than none: ranks must reduce the same set of gradients
                x_BTC = skip(x_BTC, block.parameters())
                routings.append(None)
        if cache is not None:
            cache.advance(ids_BT.shape[1])
        hidden_BTC = self.norm(x_BTC)
        return hidden_BTC if self.output_multiplier == 1 else hidden_BTC * self.output_multiplier, routings

    def recomputes(self, block: int) -> bool:
        """Whether a block is recomputed in the backward pass."""
        return self.recompute_every > 0 and block % self.recompute_every == 0

    def draw_active_blocks(self, seed: int) -> list[bool] | None:
        """LayerDrop: which blocks run for a micro-batch, given a seed; None: all."""
        return draw_active_blocks(self.layerdrop, self.n_layers, seed=seed) if self.layerdrop else None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embedding.weight.device

    @property
    def head_weight(self) -> Tensor:
        """(vocab_size, d_model): the matrix of the head; the token table if it is tied."""
        head: Any = self.head
        weight: Tensor = self.embedding.weight if head is None else head.matrix()
        return weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (…, d_model) → logits (…, vocab_size)."""
        logits: Tensor = F.linear(hidden, self.head_weight) if self.head is None else self.head(hidden)
        return logits

    def for_inference(
        self, dtype: torch.dtype, *, int8: bool = False, kernels: DecodeKernels | None = None, many_rows: bool = False
    ) -> None:
        """Convert every weight in place to the fastest form for inference in ``dtype``; cannot be undone.

        Outputs equal those of autocast to ``dtype`` (no autocast if it is the weights' own dtype) up to rounding. The
        model can be called as before, but not trained or saved. Copies replace the matrices, and a tied token table is
        kept beside its copy in the head; without kernels, fp32 needs no copies.

        Args:
            int8: round every matrix to int8, per output channel (``nn.inference_linear.quantize_rows``). Embeddings,
                norms, biases and routers stay exact; a tied head is a rounded copy of the token table.
            kernels: used on a CPU for products of few rows and for the attention of one query.
            many_rows: the rows of a step are many, so compute all of them with the kernels.
        """
        kernels = kernels if self.device.type == "cpu" else None
        form = InferenceForm(dtype=dtype, int8=int8, kernels=kernels, many_rows=many_rows)
        tied, table = self.head is None, self.embedding.weight
        for module in list(self.modules()):  # a copy, because children are replaced on the way
            for name, child in module.named_children():
                if isinstance(child, Linear | GroupedLinear):
                    setattr(module, name, child.for_inference(form))
        if tied and dtype == table.dtype and not form.streams:
            reorder_(table)
        elif tied:
            with torch.device("meta"):
                head = Linear(d_in=self.d_model, d_out=self.vocab_size, bias=False)
            head.weight = table
            self.head = head.for_inference(form)
        if form.streams:
            for module in self.modules():
                if isinstance(module, MaskedAttention):
                    module.decode_kernels = form.kernels
            self.decode_step = recorded_step(form, self.embedding, self.pos, self.layers(), self.norm, self.max_seq_len)

    def make_cache(
        self,
        batch_size: int,
        max_len: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Cache:
        """An empty cache for ``max_len`` positions.

        Args:
            device: default: the model's.
            dtype: default: the dtype of attention on that device, which is autocast's where it is on.
        """
        device = self.device if device is None else torch.device(device)
        if dtype is None:
            dtype = autocast_dtype(device, self.embedding.weight.dtype)
        layers = [b.make_cache(batch_size, max_len, device=device, dtype=dtype) for b in self.layers()]
        return Cache(layers, max_len=max_len)

    def init_weights(self) -> None:
        """Initialize all weights from torch's global generator, in a fixed order, and fill the constant tables."""
        for _, fill in self.parts():
            fill()

    def parts(self) -> list[tuple[nn.Module, Callable[[], object]]]:
        """The modules that make up the model, each with its initializer, in the order of initialization."""
        # Part by part, because FSDP initializes and shards one at a time and so never holds the whole model.
        std, residual_std = self.init_std, self.residual_std
        parts: list[tuple[nn.Module, Callable[[], object]]] = [
            (self.embedding, lambda: nn.init.normal_(self.embedding.weight, std=std)),
            (self.pos, partial(self.pos.init_weights, std)),
        ]
        parts += [(block, partial(block.init_weights, std=std, residual_std=residual_std)) for block in self.layers()]
        parts.append((self.norm, self.norm.init_weights))
        heads = (head for head in (self.head, self.score) if isinstance(head, Linear))
        return [*parts, *((head, partial(head.init_weights, std)) for head in heads)]

    def parameter_kinds(self) -> dict[str, ParameterKind]:
        """Kind of each parameter, by name.

        ``matrix``: of a linear layer; ``head``: the matrix of an untied head or of a score head; ``embedding``: a
        look-up table; ``vector``: anything else.
        """
        # By identity and not by name: a tied head is the same tensor as the token table, and counts as a table.
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        stacked = stacked_vectors(self)
        heads = {id(head.weight) for head in (self.head, self.score) if head is not None}

        def kind(name: str, parameter: nn.Parameter) -> ParameterKind:
            if id(parameter) in tables:
                return "embedding"
            if id(parameter) in heads:
                return "head"
            return "matrix" if parameter.ndim >= 2 and name not in stacked else "vector"

        return {name: kind(name, parameter) for name, parameter in self.named_parameters()}

    def parameter_counts(self) -> ParameterCounts:
        """Parameter counts, on any device."""
        kinds = self.parameter_kinds()
        sizes = {name: p.numel() for name, p in self.named_parameters()}
        total = sum(sizes.values())
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        inactive = sum(block.ffn.inactive_parameters() for block in self.layers())
        embedding = sum(n for name, n in sizes.items() if kinds[name] == "embedding")
        return ParameterCounts(total=total, trained=trained, active=total - inactive, embedding=embedding)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of the forward pass, head included, for one token that attends to ``context`` keys.

        Matrix products only, counting a multiply-add as two, and attention as if nothing were masked: the convention of
        ``torch.utils.flop_counter``. The backward pass takes twice as many.
        """
        return self._head_flops() + sum(block.flops_per_token(context) for block in self.layers())

    def training_flops_per_token(self, context: int) -> int:
        """FLOPs of forward and backward pass for one token that attends to ``context`` keys.

        The backward pass takes twice the forward pass: each product has a gradient for either operand, except that a
        frozen matrix has none.
        """
        head = 0 if self.head_weight.requires_grad else self._head_flops()
        return 3 * self.flops_per_token(context) - head - frozen_flops(self.blocks)

    def decode_flops_per_token(self, context: int) -> int:
        """FLOPs of decoding one token with a cache; ``context`` counts the token itself."""
        return self._head_flops() + sum(block.decode_flops_per_token(context) for block in self.layers())

    def _head_flops(self) -> int:
        # The same for a tied head: sharing the matrix saves memory, not the product.
        # A score head multiplies one hidden state of a whole sequence, which counts as nothing.
        return 0 if self.score is not None else 2 * self.vocab_size * self.d_model

    def cache_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Cache bytes per position of one sequence, before any window is full."""
        return sum(block.attn.cache_bytes_per_token(dtype) for block in self.layers())

    def cache_bytes(self, max_len: int, dtype: torch.dtype) -> int:
        """Cache bytes of one sequence of ``max_len`` positions; a layer with a window holds fewer."""
        return sum(block.cache_bytes(max_len, dtype) for block in self.layers())

    def layers(self) -> list[Block]:
        """The blocks, in the order of the forward pass."""
        return cast(list[Block], list(self.blocks))
