"""Begin and end tokens of imported models, compared with transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tinyllm
from tests.support import hub
from tests.support.fixtures import Call
from tests.support.models import Scripted, tiny_model
from tests.support.training_runs import SMALL, train, write_corpus
from tinyllm.errors import UserError
from tinyllm.inference.generator import bos_of, generate_batch, generate_text, prompt_ids
from tinyllm.inference.sampling import Sampling
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.tokenizers.char import CharTokenizer
from tinyllm.tokenizers.huggingface import find_end_of_text

SPECIAL = ["<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"]
PROMPT = "one two"


def chat_model(path: Path, *, adds_bos: bool) -> Any:
    """Save a small Llama with a tokenizer like Llama 3's; returns the transformers model."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    hub.quiet()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL])
    bos, turn, end = map(backend.token_to_id, SPECIAL)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], bos)]
        )
    config = LlamaConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.6,
        bos_token_id=bos,
        eos_token_id=[end, turn],
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight[94:] = model.lm_head.weight[0]  # only printable ASCII, which stands first, is ever said
    model.save_pretrained(path)
    names = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[2]}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(path)
    return model


def transformers_text(path: Path, prompt: str, *, new: int) -> tuple[list[int], str]:
    """The ids that transformers generates greedily, and their text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=new, do_sample=False, pad_token_id=0)[
        0, inputs["input_ids"].shape[1] :
    ]
    return ids.tolist(), tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("adds_bos", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_text_equals_that_of_transformers(adds_bos: bool, tmp_path: Path) -> None:
    path = tmp_path / "model"
    chat_model(path, adds_bos=adds_bos)
    free, whole = transformers_text(path, PROMPT, new=12)
    ours = generate_text(*tinyllm.load(path), PROMPT, max_new_tokens=12, temperature=0)
    assert ours == PROMPT + whole
    # now the fourth token that it says ends a turn: second of two in the file for generation, unknown to config.json
    settings = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
    settings["eos_token_id"] = [settings["eos_token_id"][0], free[3]]
    (path / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    cut, _ = transformers_text(path, PROMPT, new=12)
    model, tokenizer = tinyllm.load(path)
    assert len(cut) == free.index(free[3]) + 1 < 12
    assert tokenizer.end_ids == set(settings["eos_token_id"]) and tokenizer.adds_bos == adds_bos
    assert generate_text(model, tokenizer, PROMPT, max_new_tokens=12, temperature=0) == PROMPT + tokenizer.decode(
        cut[:-1]
    )


@pytest.mark.slow
def test_imported_run_begins_and_ends_like_the_directory(tmp_path: Path, call: Call) -> None:
    chat_model(tmp_path / "model", adds_bos=True)
    assert call("import_hf", f"path={tmp_path / 'model'}", f"out={tmp_path / 'run'}").code == 0
    (_, before), (_, after) = tinyllm.load(tmp_path / "model"), tinyllm.load(tmp_path / "run")
    assert (after.bos_id, after.adds_bos, after.end_ids) == (before.bos_id, before.adds_bos, before.end_ids)
    assert prompt_ids(after, "ab") == prompt_ids(before, "ab") and prompt_ids(after, "ab")[0] == before.bos_id
    assert prompt_ids(after, "") == [before.bos_id]
    assert call("export", f"run={tmp_path / 'run'}", f"out={tmp_path / 'again'}").code == 0
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"] == [
        258,
        257,
    ]
    answer = call("generate", f"run={tmp_path / 'run'}", "prompt=a<|eot_id|>b", "special=true", "max_new_tokens=2")
    assert answer.code == 0, answer
    answer = call("generate", f"run={tmp_path / 'run'}", f"prompt={'ab' * 40}", "max_new_tokens=2")
    assert "a prompt has 81 tokens: the model reads the last 64, its context" in answer.err


def test_special_tokens_in_a_prompt_are_matched_when_asked(tmp_path: Path) -> None:
    chat_model(tmp_path, adds_bos=False)
    tokenizer = tinyllm.load(tmp_path)[1]
    turn = tokenizer.special["<|eot_id|>"]
    assert turn not in prompt_ids(tokenizer, "a<|eot_id|>b")
    assert prompt_ids(tokenizer, "a<|eot_id|>b", special=True)[1] == turn
    assert prompt_ids(tokenizer, "<|begin_of_text|>a", special=True, bos=True)[:2] == prompt_ids(
        tokenizer, "a", bos=True
    )


def test_stop_string_that_spells_a_special_token_stops_at_that_token(tmp_path: Path) -> None:
    chat_model(tmp_path, adds_bos=False)
    tokenizer = tinyllm.load(tmp_path)[1].used_by(bos_id=None, adds_bos=False, eos_ids=[])
    turn, end = tokenizer.special["<|eot_id|>"], tokenizer.special["<|end_of_text|>"]
    script = [*tokenizer.encode("ab"), turn, *tokenizer.encode("cd"), end]

    def said(**settings: Any) -> str:
        model = Scripted(list(script), vocab_size=tokenizer.vocab_size)
        return generate_text(model, tokenizer, "x", max_new_tokens=9, temperature=0, **settings)

    assert said() == "xabcd"
    assert said(stop="<|eot_id|>") == said(stop=["b!", "<|eot_id|>"]) == "xab"


@pytest.mark.parametrize(
    ("names", "end"),
    [
        (["<|begin_of_text|>", "<|custom_end|>"], 1),
        (["[PAD]", "[UNK]", "[CLS]", "[MASK]"], None),
        (["<s>", "<pad>", "<unk>"], None),
        (["<|im_start|>", "<|im_end|>"], 1),
        (["<|stop|>", "<bos>"], 0),
        ([], None),
    ],
)
def test_end_of_text_is_no_token_that_begins_a_text(names: list[str], end: int | None) -> None:
    assert find_end_of_text([(name, i) for i, name in enumerate(names)]) == end


def test_bos_of_a_byte_tokenizer_is_its_end_of_text() -> None:
    tokenizer = ByteTokenizer()
    assert prompt_ids(tokenizer, "a") == [97]
    assert prompt_ids(tokenizer, "a", bos=True) == [tokenizer.eot_id, 97]


def test_a_model_trained_within_documents_reads_prompts_as_documents() -> None:
    """Every document that it has read from the start began with the end-of-text token of the one before."""
    tokenizer = ByteTokenizer()
    model, other = tiny_model("model.document_mask=true", vocab_size=257), tiny_model(vocab_size=257)
    settings: dict[str, Any] = {"max_new_tokens": 6, "sampling": Sampling(temperature=0)}
    [[text]] = generate_batch(model, tokenizer, ["ab"], **settings)
    assert [[text]] == generate_batch(other, tokenizer, ["ab"], bos=True, **settings)
    assert [[text]] != generate_batch(other, tokenizer, ["ab"], **settings)
    assert bos_of(model, tokenizer, False) is False
    assert bos_of(model, CharTokenizer("ab"), "auto") == bos_of(other, tokenizer, "auto") == "auto"


@pytest.mark.parametrize("prompt", [b"caf\xe9".decode("utf-8", "surrogateescape"), "a\ud800"])
def test_a_prompt_that_is_not_text_is_refused(prompt: str) -> None:
    with pytest.raises(UserError, match="not valid UTF-8"):
        prompt_ids(ByteTokenizer(), prompt)


@pytest.mark.parametrize("settings", [{"temperature": 1e-38}, {"temperature": 1e-300}, {"repetition_penalty": 1e-38}])
def test_extreme_sampling_settings_still_choose_a_token(settings: dict[str, float]) -> None:
    tokenizer = ByteTokenizer()
    text = generate_text(Scripted([97, 98, 97, tokenizer.eot_id]), tokenizer, "ab", max_new_tokens=4, **settings)
    assert text.startswith("ab")
    cold = Sampling(temperature=1e-38)
    logits = torch.tensor([[1e30, 2.0, -1e30], [0.0, 88.0, 87.9]])
    assert cold.filter(logits).softmax(-1).argmax(-1).tolist() == [0, 1]


@pytest.mark.slow
def test_trainer_sample_settings_are_applied(tmp_path: Path, call: Call) -> None:
    data = ("dataset=text", f"dataset.path={write_corpus(tmp_path / 'words.txt')}", "trainer.max_steps=2")
    often = [one for one in SMALL if not one.startswith("trainer.sample_every")]
    shown = []
    for more in ("trainer.sample.temperature=0", "trainer.sample.top_k=1", "trainer.sample.temperature=2.5"):
        answer = call("train", *often, *data, "trainer.sample_every=2", more, f"run.dir={tmp_path / more}")
        assert answer.code == 0, answer
        shown.append([line for line in answer.out.splitlines() if line.startswith("sample at step")])
    greedy, top, warm = shown
    assert greedy and greedy == top != warm
    answer = call("train", *often, *data, "trainer.sample.temperature=0", "trainer.sample.top_k=3")
    assert answer.code == 2 and "trainer.sample.top_k" in answer.err
    answer = call("train", *often, *data, "trainer.sample_every=0", "trainer.sample.top_p=0.5")
    assert answer.code == 2 and "trainer.sample_every=0 turns it off" in answer.err


@pytest.mark.slow
def test_latest_is_the_newest_run(tmp_path: Path, call: Call) -> None:
    answer = call("generate", "run=latest")
    assert answer.code == 2 and "python -m tinyllm.train creates one" in answer.err
    data = ("dataset=text", f"dataset.path={write_corpus(tmp_path / 'words.txt')}", "trainer.max_steps=1")
    assert train(*SMALL, *data, "run.dir=outputs/2026-01-01/one") == 0
    answer = call("generate", "run=latest", "max_new_tokens=1", "--json")
    assert answer.code == 0 and json.loads(answer.out)["run"] == "outputs/2026-01-01/one"
