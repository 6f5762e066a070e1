"""A minimal GPT and its training loop in the style of nanoGPT, as a baseline for ``benchmarks/gpu.py``.

    python benchmarks/plain_gpt.py gpt2|medium|large BATCH cuda|cpu [tiny]

Learned positions, LayerNorm without biases, one fused projection for queries, keys and values, torch's scaled
dot-product attention, GELU, tied embeddings, cross-entropy on all logits; bf16 autocast, ``torch.compile`` of the whole
model, fused AdamW and clipping at 1.0, on random tokens. Prints tokens/s and peak memory as JSON.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPES = {  # width, layers, heads, context, vocabulary: those of conf/model
    "gpt2": (768, 12, 12, 1024, 50257),
    "medium": (768, 12, 12, 1024, 32000),
    "large": (1600, 32, 25, 4096, 32000),
    "tiny": (64, 2, 2, 32, 256),
}


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Token and position embeddings, blocks, and a tied head."""

    def __init__(self, width: int, layers: int, heads: int, context: int, vocab: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train_step(
    model: nn.Module, step_model: Callable[..., Tensor], optimizer: torch.optim.Optimizer, ids: Tensor
) -> None:
    """A training step on rows of token ids; ``step_model``: the model, compiled or not."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        loss = step_model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()  # waits for the device


def main(size: str, batch: int, device: str, *, tiny: bool) -> dict[str, float]:
    """Train some steps and measure them."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    shape = SHAPES["tiny" if tiny else size]
    context, vocab = shape[3], shape[4]
    model = GPT(*shape).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=True)
    step_model = model if tiny else torch.compile(model)
    times = []
    for step in range(6 if tiny else 30):
        ids = torch.randint(vocab, (batch, context + 1), device=device)
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        train_step(model, step_model, optimizer, ids)
        if step >= 3:  # the first steps compile and warm up
            times.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    return {"tokens_per_s": batch * context / statistics.median(times), "peak_gb": peak}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], tiny="tiny" in sys.argv[4:])))
