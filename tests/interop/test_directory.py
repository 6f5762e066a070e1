"""The files: several of them, older spellings, other dtypes, and what is wrong with them said in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.interop.test_families import CLOSE, exported
from tests.support import hub
from tinyllm.errors import UserError
from tinyllm.programs.import_hf import import_hf
from tinyllm.programs.load_model import load

pytestmark = pytest.mark.filterwarnings("ignore:.*has no tokenizer")
MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied model with biases."""
    return hub.saved(hub.random_model("llama", 3), tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.saved(hub.random_model("gpt2", 3), tmp_path_factory.mktemp("gpt2") / "model")


def changed(model: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of a model directory with changed tensors."""
    shutil.copytree(model, to)
    tensors = load_file(to / MODEL)
    change(tensors)
    save_file(tensors, to / MODEL)
    return to


def test_sharded_weights_are_read(llama: Path, tmp_path: Path) -> None:
    theirs = hub.random_model("llama", 3)
    parts = hub.saved(theirs, tmp_path / "parts", max_shard_size="4KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    ids = hub.ids()
    assert torch.equal(hub.logits(hub.load(parts), ids), hub.logits(hub.load(llama), ids))
    next(parts.glob("*00002-of*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"00002-of.*missing"):
        hub.load(parts)


def test_gpt2_names_without_prefix_and_with_masks_are_read(gpt2: Path, tmp_path: Path) -> None:
    def old(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
        tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)

    ids = hub.ids()
    older = changed(gpt2, tmp_path / "old", old)
    assert torch.equal(hub.logits(hub.load(older), ids), hub.logits(hub.load(gpt2), ids))


def test_rotary_tables_and_a_written_tied_head_are_ignored(tmp_path: Path) -> None:
    theirs = next(model for seed in range(9) if (model := hub.random_model("llama", seed)).config.tie_word_embeddings)

    def old(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    model = hub.saved(theirs, tmp_path / "model")
    ids = hub.ids()
    expected = hub.logits(theirs, ids)
    older = changed(model, tmp_path / "old", old)
    assert (hub.logits(hub.load(older), ids) - expected).abs().max() <= CLOSE
    other = changed(older, tmp_path / "other", lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(UserError, match=r"lm_head\.weight"):
        hub.load(other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_half_precision_weights_keep_their_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    model = hub.saved(hub.random_model("qwen3_moe", 0).to(dtype), tmp_path / "model")
    facts = import_hf(str(model), str(tmp_path / "run"))
    assert facts["dtype"] == str(dtype).removeprefix("torch.")
    back = exported(tmp_path / "run", tmp_path / "back")
    before, after = load_file(model / MODEL), load_file(back / MODEL)
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)
    assert json.loads((back / "config.json").read_text())["dtype"] == facts["dtype"]
    ids = hub.ids()
    assert torch.equal(hub.logits(hub.load(model), ids), hub.logits(load(tmp_path / "run")[0], ids))
    theirs = type(hub.random_model("qwen3_moe", 0)).from_pretrained(model, dtype=torch.float32)
    assert (hub.logits(theirs, ids) - hub.logits(hub.load(model), ids)).abs().max() <= CLOSE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"model\.norm\.weight is missing"),
        (
            lambda tensors: tensors.update({"model.extra": torch.ones(1)}),
            r"unexpected tensor model\.extra; this",
        ),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}), r"model\.norm\.weight has shape \(3,\)"),
        (
            lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].to(torch.int8)}),
            r"model\.norm\.weight is I8",
        ),
    ],
    ids=["missing", "unknown", "shape", "quantized"],
)
def test_weights_that_do_not_fit_are_refused(change: Any, said: str, llama: Path, tmp_path: Path) -> None:
    wrong = changed(llama, tmp_path / "wrong", change)
    with pytest.raises(UserError, match=said):
        import_hf(str(wrong), str(tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["wrong"]


def test_damaged_file_is_named(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "cut")
    whole = (llama / MODEL).read_bytes()
    (tmp_path / "cut" / MODEL).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"damaged weights \(.*model\.safetensors\)"):
        hub.load(tmp_path / "cut")
    (tmp_path / "cut" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        hub.load(tmp_path / "cut")
    (tmp_path / "cut" / MODEL).unlink()
    (tmp_path / "cut" / "pytorch_model.bin").touch()
    shutil.copy(llama / "config.json", tmp_path / "cut")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is not read"):
        hub.load(tmp_path / "cut")


def test_padded_vocabulary_survives_import_and_export(llama: Path, tmp_path: Path) -> None:
    from tests.interop.test_tokenizers import TOKENIZERS, written

    run = shutil.copytree(llama, tmp_path / "model")
    config = (run / "config.json").read_text()
    tokenizer = TOKENIZERS["char with <unk>"]
    written(tokenizer, run)
    (run / "config.json").write_text(config)
    assert tokenizer.vocab_size < hub.VOCAB
    facts = import_hf(str(run), str(tmp_path / "run"))
    model, again = load(tmp_path / "run")
    assert (model.vocab_size, again.vocab_size) == (hub.VOCAB, tokenizer.vocab_size)
    assert facts["family"] == "Llama"


def sharded(path: Path) -> tuple[Path, dict[str, str]]:
    """A model in several files, and its index: the file of each tensor."""
    parts = hub.saved(hub.random_model("llama", 3), path, max_shard_size="16KB")
    listed: dict[str, str] = json.loads((parts / f"{MODEL}.index.json").read_text())["weight_map"]
    return parts, listed


def put(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Add tensors to a file."""
    save_file(load_file(file) | tensors, file, {"format": "pt"})


def test_index_decides_which_file_holds_a_tensor(llama: Path, tmp_path: Path) -> None:
    parts, listed = sharded(tmp_path / "parts")
    ids = hub.ids()
    expected = hub.logits(hub.load(llama), ids)
    name, last = "model.embed_tokens.weight", max(listed.values())
    assert listed[name] != last
    stale = load_file(parts / listed[name])[name] + 1
    put(parts / last, {name: stale})
    assert torch.equal(hub.logits(hub.load(parts), ids), expected), "a copy elsewhere is stale"

    index = parts / f"{MODEL}.index.json"
    index.write_text(json.dumps({"weight_map": {key: file for key, file in listed.items() if key != name}}))
    with pytest.raises(UserError, match=r"omits model\.embed_tokens\.weight, which .* contains"):
        hub.load(parts)
    index.write_text(json.dumps({"weight_map": listed | {"model.norm.weight": listed[name]}}))
    if listed["model.norm.weight"] != listed[name]:
        with pytest.raises(UserError, match=r"lists model\.norm\.weight in .*, which does not contain it"):
            hub.load(parts)

    shutil.copy(llama / MODEL, parts)
    assert torch.equal(hub.logits(hub.load(parts), ids), expected), "a whole file comes first, as in transformers"


def test_refusals_say_what_transformers_would_do(tmp_path: Path) -> None:
    tied = next(model for seed in range(9) if (model := hub.random_model("llama", seed)).config.tie_word_embeddings)
    path = hub.saved(tied, tmp_path / "tied")
    config = json.loads((path / "config.json").read_text())
    del config["tie_word_embeddings"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"lm_head\.weight is missing: .*tie_word_embeddings: true"):
        hub.load(path)
    double = changed(path, tmp_path / "double", lambda t: t.update({key: one.double() for key, one in t.items()}))
    (double / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(UserError, match="double-precision weights are not supported"):
        hub.load(double)
