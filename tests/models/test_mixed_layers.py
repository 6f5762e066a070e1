"""A model of very different layers: its arithmetic, a run, and loading it again."""

from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import tinyllm
from tests.support.options import SHAPE, node
from tests.support.training_runs import SMALL, digest, logged, metrics, train
from tinyllm.config.build import build
from tinyllm.inference.decoding import Decoder
from tinyllm.models.transformer import Transformer
from tinyllm.utils.yaml_files import read_yaml

KINDS = (
    "model.layers.kinds={far:'attn=mla model.block.attn.q_latent_dim=12 model.block.attn.rope_head_dim=6',"
    "near:'attn=gqa model.n_heads=2 model.n_kv_heads=1 model.block.attn.window=4 model.block.attn.sinks=1 ffn=swiglu',"
    "mixed:'moe=aux_free model.parallel_block=true model.block.attn.qk_norm=true'}"
)
MIXED = ("layers=pattern", KINDS, "model.layers.pattern=[near,far,near,mixed]", "model.n_layers=4")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
IDS = torch.randint(31, (2, 12), generator=torch.Generator().manual_seed(0))


def mixed(seed: int = 0, **changes: Any) -> Transformer:
    torch.manual_seed(seed)
    model = build(node(MIXED) | SHAPE | {"n_layers": 4} | changes, path="model")
    assert isinstance(model, Transformer)
    return model


def test_layers_are_of_the_configured_kinds() -> None:
    model = mixed()
    parts = [(type(b.attn).__name__, type(b.ffn).__name__, b.parallel_block) for b in model.layers()]
    near = ("GQA", "GLU", False)
    assert parts == [near, ("MLA", "MLP", False), near, ("MHA", "AuxFree", True)]
    assert model.pos.by_dim.keys() == {"16", "6", "8"}  # a table for each size that is rotated
    assert model.layers()[0].attn.rotary is model.layers()[2].attn.rotary
    assert model.first_of_kind == [0, 1, 0, 3]


def test_cached_decoding_equals_the_full_forward() -> None:
    """With a ring, a latent and a plain cache in one model."""
    model = mixed()
    with torch.no_grad():
        full = model(IDS)
        cache = model.make_cache(2, 12)
        slots = [layer.buffers[0].shape[2] for layer in cache.layers]
        assert slots == [5, 12, 5, 12]
        for prefill in range(1, 12):
            cache.reset()
            steps = IDS.split([prefill, *[1] * (12 - prefill)], dim=1)
            cached = torch.cat([model(step, cache=cache) for step in steps], dim=1)
            torch.testing.assert_close(cached, full, **CLOSE)
    held = sum(buffer.numel() * buffer.element_size() for layer in cache.layers for buffer in layer.buffers)
    assert held == 2 * model.cache_bytes(12, torch.float32)


def test_rows_of_different_lengths_decode_as_if_alone() -> None:
    model = mixed()
    with torch.no_grad():
        cache = model.make_cache(2, 12)
        for row, length in enumerate((7, 3)):
            model(IDS[row : row + 1, :length], cache=cache.rows(row, row + 1))
        together = [model(torch.stack((IDS[0, 7 + i], IDS[1, 3 + i]))[:, None], cache=cache) for i in range(5)]
        full = model(IDS)
    torch.testing.assert_close(torch.cat(together, 1), torch.stack((full[0, 7:12], full[1, 3:8])), **CLOSE)


def test_generation_past_the_context_is_the_same_with_and_without_a_cache() -> None:
    model = mixed().eval()
    with torch.no_grad():
        model.embedding.weight.mul_(4)
    generated: list[list[list[int]]] = [[], []]
    for kv_cache in (True, False):
        decoder = Decoder(model, [[1, 2, 3], [4, 5, 6, 7, 8, 9]], n_samples=1, max_new_tokens=20, kv_cache=kv_cache)
        for _ in range(20):
            ids_B = decoder.logits().argmax(-1)
            decoder.append(ids_B)
            generated[kv_cache].append(ids_B.tolist())
    assert generated[0] == generated[1]


def test_gradients_recompute_and_accounting() -> None:
    model = mixed(dropout=0.1)
    results = []
    for recompute in (False, True):
        if recompute:
            for block in model.layers():
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
        torch.manual_seed(1)
        hidden, routings = model.forward_with_routing(IDS.repeat(4, 1))
        assert [routing is not None for routing in routings] == [False, False, False, True]
        assert routings[3] is not None
        (hidden.square().sum() + routings[3].loss).backward()
        results.append({name: p.grad for name, p in model.named_parameters()})
        model.zero_grad(set_to_none=True)
    for name, grad in results[0].items():
        assert grad is not None and grad.any(), name
        assert torch.equal(grad, results[1][name]), name  # type: ignore[arg-type]
    counts = mixed().parameter_counts()
    ffn = model.layers()[3].ffn
    assert counts.total - counts.active == ffn.inactive_parameters() > 0
    model = mixed().eval()
    cache = model.make_cache(1, 12)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(IDS[:1, :11], cache=cache)
        before = counter.get_total_flops()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            model.logits(model(IDS[:1, 11:], cache=cache))
    assert counter.get_total_flops() - before == model.decode_flops_per_token(12)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished run of eight steps with mixed layers, and its command line."""
    from tests.support.training_runs import write_corpus

    folder = tmp_path_factory.mktemp("mixed")
    data = ["dataset=text", f"dataset.path={write_corpus(folder / 'words.txt')}"]
    kinds = KINDS.replace("model.n_heads=2 ", "")
    arguments = [*data, *SMALL, *MIXED[:1], kinds, *MIXED[2:], "trainer.max_steps=8", "model.layerdrop=0.3"]
    assert train(*arguments, f"run.dir={folder / 'whole'}", "trainer.eval_every=4") == 0
    return folder / "whole", arguments


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(run: tuple[Path, list[str]], tmp_path: Path) -> None:
    whole, arguments = run
    parts = tmp_path / "parts"
    assert train(*arguments, f"run.dir={parts}", "trainer.eval_every=4", "trainer.stop_after_steps=3") == 0
    assert train(f"resume={parts}") == 0
    assert digest(parts) == digest(whole)
    assert metrics(parts) == metrics(whole)


@pytest.mark.slow
def test_the_saved_configuration_is_self_contained(run: tuple[Path, list[str]]) -> None:
    """Loading composes nothing: the blocks are saved in full, by the names of their kinds."""
    saved = read_yaml(run[0] / "config.yaml")["model"]["layers"]
    assert saved["pattern"] == ["near", "far", "near", "mixed"]
    assert saved["kinds"]["near"]["n_kv_heads"] == 1
    assert saved["kinds"]["far"]["attn"]["_target_"].endswith("MLA")
    with (
        mock.patch("hydra.compose", side_effect=AssertionError),
        mock.patch("tinyllm.config.compose.hydra_compose", side_effect=AssertionError),
    ):
        model, _ = tinyllm.load(run[0])
    assert [type(block.attn).__name__ for block in model.layers()] == ["GQA", "MLA", "GQA", "MHA"]
    assert logged(run[0], "val/loss")


@pytest.mark.parametrize(
    "change",
    [
        KINDS.replace("window=4", "window=5").replace("model.n_heads=2 ", ""),
        "model.layers.pattern=[far,near,near,mixed]",
        "layers=uniform",
    ],
    ids=["kind", "pattern", "layers"],
)
@pytest.mark.every(3)
def test_different_layers_cannot_be_resumed(
    run: tuple[Path, list[str]], change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert train(f"resume={run[0]}", change, "trainer.max_steps=9") == 2
    assert "a resumed run cannot change model.layers." in capsys.readouterr().err


@pytest.mark.slow
def test_the_layers_file_may_change_after_the_start(tmp_path: Path, run: tuple[Path, list[str]]) -> None:
    """The run keeps its layers and reports that the file has changed."""
    line = '{"attn": "mha", "n_head": 2, "moe": false, "up_dim": 64, "non_linearity": "relu"}\n'
    file = tmp_path / "layers.jsonl"
    file.write_text(line * 2)
    arguments = [*run[1][:2], *SMALL, "layers=jsonl", f"model.layers.path={file}", "trainer.max_steps=4"]
    arguments = [one for one in arguments if not one.startswith(("model.n_heads", "model.d_ff"))]
    assert train(*arguments, f"run.dir={tmp_path / 'whole'}") == 0
    assert train(*arguments, f"run.dir={tmp_path / 'parts'}", "trainer.stop_after_steps=2") == 0
    file.write_text(line + line.replace("relu", "gelu"))
    assert train(f"resume={tmp_path / 'parts'}") == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
