"""The commands export and import_hf: a run to transformers and back."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import tinyllm
from tests.support import hub
from tests.support.training_runs import train, write_corpus
from tinyllm.inference.generator import generate_text

SMALL = ("trainer.batch_size=4", "trainer.precision=fp32", "trainer.sample_every=0", "trainer.max_steps=3")
SHAPE = ("model.d_model=32", "model.n_layers=2", "model.max_seq_len=32", "attn=gqa", "ffn=swiglu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, a bpe run on it, the run's export, and the import of that export."""
    from tinyllm.config.compose import compose
    from tinyllm.programs.export import export
    from tinyllm.programs.import_hf import import_hf

    place = tmp_path_factory.mktemp("programs")
    write_corpus(place / "a.txt", n_words=600)
    data = ("dataset=text", f"dataset.path={place / 'a.txt'}", "tokenizer=bpe", "tokenizer.vocab_size=300")
    assert train(*SHAPE, *SMALL, *data, f"run.dir={place / 'run'}") == 0
    export(compose(f"out={place / 'model'}", program="export"), str(place / "run"))
    import_hf(str(place / "model"), str(place / "imported"))
    return place


def test_transformers_generates_the_same_text(place: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hub.quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, tokenizer = (
            AutoModelForCausalLM.from_pretrained(place / "model"),
            AutoTokenizer.from_pretrained(place / "model"),
        )
    inputs = tokenizer("that it was", return_tensors="pt")
    length = inputs["input_ids"].shape[1] + 12
    theirs = tokenizer.decode(model.generate(**inputs, max_length=length, do_sample=False, pad_token_id=0)[0])
    for run in ("run", "model", "imported"):
        ours = generate_text(*tinyllm.load(place / run), "that it was", max_new_tokens=12, temperature=0)
        assert ours == theirs.removesuffix("<|endoftext|>")
    assert model.config.eos_token_id == tokenizer.eos_token_id == tinyllm.load(place / "run")[1].eot_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_imported_run_has_the_weights_and_the_tokenizer(place: Path) -> None:
    (before, words), (after, again) = tinyllm.load(place / "run"), tinyllm.load(place / "imported")
    assert again.fingerprint() == words.fingerprint()
    state = after.state_dict()
    assert state.keys() == before.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.state_dict().items())


@pytest.mark.slow
def test_generate_and_evaluate_take_run_export_and_import(place: Path, call: Any) -> None:
    texts, losses = set(), set()
    data = ("dataset=text", f"dataset.path={place / 'a.txt'}")
    for run in ("run", "model", "imported"):
        answer = call("generate", f"run={place / run}", "prompt=that it", "temperature=0", "max_new_tokens=8")
        assert answer.code == 0, answer.err
        texts.add(answer.out)
        answer = call("evaluate", f"run={place / run}", *data, "--json")
        assert answer.code == 0, answer.err
        losses.add(json.loads(answer.out)["val/loss"])
    assert len(texts) == len(losses) == 1
    assert json.loads(call("evaluate", f"run={place / 'run'}", "--json").out)["val/loss"] in losses


def test_export_and_import_print_what_they_wrote(place: Path, call: Any, tmp_path: Path) -> None:
    answer = call("export", f"run={place / 'imported'}", f"out={tmp_path / 'again'}")
    assert (answer.code, answer.out) == (0, f"Llama, {count(place):,} parameters in float32: {tmp_path / 'again'}\n")
    first, second = ((path / "config.json").read_text() for path in (place / "model", tmp_path / "again"))
    assert first == second
    answer = call("import_hf", f"path={tmp_path / 'again'}", f"out={tmp_path / 'run'}", "--json")
    assert json.loads(answer.out) == {
        "out": str(tmp_path / "run"),
        "family": "Llama",
        "parameters": count(place),
        "dtype": "float32",
    }


def count(place: Path) -> int:
    return int(tinyllm.load(place / "run")[0].parameter_counts().total)


@pytest.mark.parametrize(
    ("program", "arguments", "said"),
    [
        (
            "export",
            ["run={place}/run"],
            "error: no output directory given (out=null): python -m tinyllm.export run={place}/run out=",
        ),
        (
            "export",
            ["run={place}/run", "out={place}/model"],
            "error: the directory already exists (out={place}/model): ",
        ),
        ("export", ["run={place}/run", "out=x", "format=gguf"], "error: value not allowed (format=gguf): one of hf"),
        ("export", ["run={place}/run", "out=x", "weights=ema"], "error: the run has no averaged weights (weights=ema)"),
        ("export", ["run={place}", "out=x"], "error: no checkpoint found (run={place})"),
        ("import_hf", ["out=x"], "error: no model given (path=null): "),
        ("import_hf", ["path={place}/nothing", "out=x"], "error: no such directory (path={place}/nothing)"),
        ("import_hf", ["path={place}/run", "out=x"], "error: cannot be read ({place}/run/config.json)"),
        (
            "import_hf",
            ["path={place}/model"],
            "error: no output directory given (out=null): python -m tinyllm.import_hf path=",
        ),
        (
            "import_hf",
            ["path={place}/model", "out={place}/run"],
            "error: the directory already exists (out={place}/run)",
        ),
        ("evaluate", ["run={place}/model"], "error: this model was not trained with tinyllm, so it has no data "),
        ("evaluate", ["run={place}/imported"], "error: this model was not trained with tinyllm, so it has no data "),
        ("evaluate", ["run={place}/run", "tokenizer=byte"], "error: the key has no effect here (tokenizer="),
        ("train", ["resume={place}/imported"], "error: there is no run to resume (resume={place}/imported)"),
        ("generate", ["run={place}/wrong"], "error: tinyllm cannot express this model (model_type=bert, {place}/wrong"),
    ],
)
@pytest.mark.every(4)
def test_mistakes_are_one_line(program: str, arguments: list[str], said: str, place: Path, call: Any) -> None:
    (place / "wrong").mkdir(exist_ok=True)
    (place / "wrong" / "config.json").write_text('{"model_type": "bert"}')
    answer = call(program, *(one.format(place=place) for one in arguments))
    assert answer.code == 2
    assert answer.err.startswith(said.format(place=place))
    assert answer.err.count("\n") == 1
    assert answer.made == []


def test_init_from_an_imported_run_trains(place: Path, tmp_path: Path) -> None:
    data = ("dataset=text", f"dataset.path={place / 'a.txt'}")
    words = ("tokenizer=pretrained", f"tokenizer.path={place / 'imported' / 'tokenizer.json'}")
    shape = ("model.block.ffn.d_ff=88", "model.tie_embeddings=true")
    start = f"init_from={place / 'imported'}"
    assert train(*SHAPE, *shape, *SMALL, *data, *words, start, f"run.dir={tmp_path / 'more'}") == 0


@pytest.mark.slow
def test_adapters_over_a_hugging_face_model_give_the_same_text_in_transformers(
    place: Path, tmp_path: Path, call: Any
) -> None:
    """Trained from the directory itself; its architecture is named where it differs. Merged, then exported."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tinyllm.config.compose import compose
    from tinyllm.programs.export import export

    settings = ["dataset=text", f"dataset.path={place / 'a.txt'}", "tokenizer=pretrained", "lora=lora", *SHAPE, *SMALL]
    settings += [f"tokenizer.path={place / 'model'}", f"init_from={place / 'model'}", "optimizer.lr=3e-2"]
    refused = call("train", *settings, "model.block.ffn.d_ff=64")
    assert refused.code == 2 and refused.err.count("\n") == 1 and refused.made == []
    assert f"(init_from={place / 'model'})" in refused.err and "model.block.ffn.d_ff=88" in refused.err
    run = tmp_path / "run"
    assert train(*settings, f"run.dir={run}") == 0
    export(compose(f"out={tmp_path / 'out'}", program="export"), str(run))
    hub.quiet()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = words("that it was", return_tensors="pt")
    length = inputs["input_ids"].shape[1] + 12
    text = words.decode(theirs.generate(**inputs, max_length=length, do_sample=False, pad_token_id=0)[0])
    ours = generate_text(*tinyllm.load(run), "that it was", max_new_tokens=12, temperature=0)
    assert ours == text.removesuffix("<|endoftext|>")
    before, after = (tinyllm.load(one)[0].state_dict() for one in (place / "model", run))
    assert not torch.equal(before["blocks.1.attn.qkv.weight"], after["blocks.1.attn.qkv.weight"])
    manifest = json.loads((next((run / "checkpoints").glob("step-*")) / "manifest.json").read_text())
    assert manifest["adapters"]["base"] == str(place / "model")


@pytest.mark.slow
def test_init_from_a_hugging_face_directory_takes_its_weights(place: Path, tmp_path: Path) -> None:
    data = ("dataset=text", f"dataset.path={place / 'a.txt'}", "tokenizer=pretrained")
    words, start = f"tokenizer.path={place / 'model'}", f"init_from={place / 'model'}"
    shape = ("model.block.ffn.d_ff=88", "model.tie_embeddings=true")
    still = ("optimizer.lr=0", "trainer.max_steps=1")
    assert train(*SHAPE, *shape, *SMALL, *still, *data, words, start, f"run.dir={tmp_path / 'run'}") == 0
    before, after = (tinyllm.load(run)[0].state_dict() for run in (place / "model", tmp_path / "run"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_failed_write_leaves_nothing_behind(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyllm.config.compose import compose
    from tinyllm.interop import directory
    from tinyllm.programs.export import export

    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory, "save_file", broken)
    with pytest.raises(tinyllm.errors.UserError, match="no space left"):
        export(compose(f"out={tmp_path / 'full'}", program="export"), str(place / "run"))
    assert list(tmp_path.iterdir()) == []


def test_moved_import_still_loads(place: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(place / "imported", tmp_path / "moved")
    assert tinyllm.load(moved)[1].fingerprint() == tinyllm.load(place / "imported")[1].fingerprint()
