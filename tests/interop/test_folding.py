"""Exporting a muP model folds its multipliers into the weights and keeps the function."""

from pathlib import Path

import pytest
import torch

from tests.support import hub
from tests.support.options import small
from tests.support.training_runs import SMALL, train, write_corpus
from tinyllm.config.compose import compose
from tinyllm.interop.convert import fold_multipliers
from tinyllm.models.parametrization import MuP
from tinyllm.programs.export import export
from tinyllm.programs.load_model import load

WIDE = {"d_model": 64, "d_ff": 96, "max_seq_len": 24, "vocab_size": hub.VOCAB}
MUP = MuP(base_width=16, base_heads=None)
COMPOSITIONS = {
    "plain": ("norm=layernorm", "pos=learned"),
    "qk_norm": ("attn=gqa", "model.block.attn.qk_norm=true"),
    "mla": ("attn=mla", "moe=aux_free"),
    "mla with a latent of queries": ("attn=mla", "model.block.attn.q_latent_dim=8"),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("overrides", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_folded_weights_give_the_same_logits(overrides: tuple[str, ...], tied: bool) -> None:
    mup = small(*overrides, parametrization=MUP, tie_embeddings=tied, bias=True, **WIDE).eval()
    with torch.no_grad():
        for parameter in mup.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    standard = small(*overrides, tie_embeddings=tied, bias=True, **WIDE).eval()
    before = {name: tensor.clone() for name, tensor in mup.state_dict().items()}
    expected = hub.logits(mup, hub.ids())
    standard.load_state_dict(mup.state_dict())
    assert (hub.logits(standard, hub.ids()) - expected).abs().max() > 0.1, "the multipliers matter"
    standard.load_state_dict(fold_multipliers(mup, mup.state_dict()))
    torch.testing.assert_close(hub.logits(standard, hub.ids()), expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mup.state_dict().items())


def test_without_multipliers_tensors_are_returned_unchanged() -> None:
    model = small("attn=mla")
    state = model.state_dict()
    assert all(tensor is state[name] for name, tensor in fold_multipliers(model, state).items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*has no tokenizer")
def test_exported_mup_run_computes_the_same(tmp_path: Path) -> None:
    """For tinyllm and for transformers, which has no muP."""
    from transformers import AutoModelForCausalLM

    run, out, corpus = tmp_path / "run", tmp_path / "out", f"dataset.path={write_corpus(tmp_path / 'words.txt')}"
    chosen = ("parametrization=mup", "ffn=swiglu", "attn=gqa", "model.n_kv_heads=1", "optimizer.lr=0.1")
    assert train("dataset=text", corpus, *SMALL, *chosen, "trainer.max_steps=20", f"run.dir={run}") == 0
    export(compose(f"out={out}", program="export"), str(run))
    ours, theirs, again = load(run)[0], AutoModelForCausalLM.from_pretrained(out).eval(), load(out)[0]
    assert (ours.output_multiplier, again.output_multiplier) == (4, 1)
    ids = torch.randint(3, ours.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    expected = hub.logits(ours, ids)
    assert (hub.logits(theirs, ids) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (hub.logits(again, ids) - expected).abs().max() <= 1e-4 * expected.abs().max()
