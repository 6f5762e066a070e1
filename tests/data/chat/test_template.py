"""Rendered conversations equal those of transformers; only what the assistant says is a target."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.chats import conversation, record
from tinyllm.data.chat.messages import conversation_of, parse_conversation
from tinyllm.data.chat.template import ChatML, ChatTemplate, FileTemplate, Roles, Seed
from tinyllm.errors import UserError
from tinyllm.interop.tokenizer import tokenizer_files
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers.bpe import BPETrainer
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.tokenizers.char import CharTrainer

TEMPLATES = {"roles": Roles(), "chatml": ChatML(), "seed": Seed()}
SHORT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


def tokenizer_for(kind: str, template: ChatTemplate) -> Tokenizer:
    """A tokenizer of the test conversations with the special tokens of a template."""
    texts = [text for seed in range(50) for text in conversation(seed).texts()] + [
        'user system assistant "tool":_<>/#.'
    ]
    texts += [template.source, str(template.special_tokens)]
    if kind == "byte":
        return ByteTokenizer(template.special_tokens)
    trainer = CharTrainer(special_tokens="auto")
    if kind == "bpe":
        trainer = BPETrainer(vocab_size=500, min_frequency=2, special_tokens="auto")  # type: ignore[assignment]
    trainer.reserve(template.special_tokens)
    return trainer.train(texts)


def in_transformers(tokenizer: Tokenizer, template: ChatTemplate, folder: Path) -> Any:
    """The tokenizer as transformers loads it after an export."""
    from transformers import AutoTokenizer

    files = tokenizer_files(tokenizer, special={}, max_length=512, chat={"chat_template.jinja": template.source})
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "name, kind, count",
    [("roles", "byte", 50), ("chatml", "bpe", 50), ("roles", "char", 8), ("roles", "bpe", 8), ("seed", "bpe", 8)],
)
def test_ids_and_mask_equal_transformers(name: str, kind: str, count: int, tmp_path: Path) -> None:
    template = TEMPLATES[name]
    tokenizer = tokenizer_for(kind, template)
    theirs = in_transformers(tokenizer, template, tmp_path)
    targets = 0
    for seed in range(count):
        entry = record(seed, tools=name != "seed")
        if name == "seed":
            entry["messages"] = [message for message in entry["messages"] if message["role"] != "system"]
        ours = template.render(parse_conversation(entry), tokenizer)
        settings = {"tools": entry.get("tools"), "return_dict": True}
        expected = theirs.apply_chat_template(entry["messages"], return_assistant_tokens_mask=True, **settings)
        assert ours.ids.tolist() == expected["input_ids"]
        assert ours.is_target.tolist() == [bool(i) for i in expected["assistant_masks"]]
        targets += int(ours.is_target.sum())
        prompt = conversation_of(entry["messages"][:-1], tools=entry.get("tools"), complete=False)
        asked = template.render(prompt, tokenizer, add_generation_prompt=True)
        shown = theirs.apply_chat_template(entry["messages"][:-1], add_generation_prompt=True, **settings)
        assert asked.ids.tolist() == shown["input_ids"] == ours.ids[: len(asked.ids)].tolist()
        template.check_prompts(parse_conversation(entry))
    assert targets > 10 * count


@pytest.mark.parametrize("name, kind", [("roles", "byte"), ("roles", "char"), ("chatml", "bpe")])
def test_text_that_spells_a_special_token_stays_text(name: str, kind: str, tmp_path: Path) -> None:
    template = TEMPLATES[name]
    tokenizer = tokenizer_for(kind, template)
    theirs = in_transformers(tokenizer, template, tmp_path)
    for seed in range(8):
        entry = record(seed, spelled=template.special_tokens)
        ours = template.render(parse_conversation(entry), tokenizer)
        settings = {"tools": entry.get("tools"), "return_dict": True, "sanitize_control_tokens": True}
        assert ours.ids.tolist() == theirs.apply_chat_template(entry["messages"], **settings)["input_ids"]
        special = np.isin(ours.ids, list(tokenizer.special.values()))
        without = json.dumps(entry)
        for token in template.special_tokens:
            without = without.replace(token, "x")
        clean = template.render(parse_conversation(json.loads(without)), tokenizer)
        assert special.sum() == np.isin(clean.ids, list(tokenizer.special.values())).sum()


def spelled(template: ChatTemplate, messages: list[dict[str, Any]]) -> str:
    """The rendered messages with the targets in brackets; a tool's result is plain."""
    tokenizer = ByteTokenizer(template.special_tokens)
    names = {i: name for name, i in tokenizer.special.items()}
    out, inside = "", False
    for i, is_target in zip(
        *(part.tolist() for part in template.render(conversation_of(messages), tokenizer)), strict=True
    ):
        out += "[" * (is_target and not inside) + "]" * (inside and not is_target) + (names.get(i) or chr(i))
        inside = is_target
    return out + "]" * inside


def test_targets_are_every_answer_its_end_and_its_calls() -> None:
    call = {"id": "1", "function": {"name": "calc", "arguments": "1+2"}}
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
        {"role": "assistant", "content": "C"},
        *SHORT,
    ]
    assert spelled(Roles(), messages) == (
        "<bos><system>S<eos><user>A<eos><assistant>[B<tool_call>calc<sep>1+2</tool_call>]<tool_result>3</tool_result>"
        "[C<eos>]<user>Hi<eos><assistant>[Yo<eos>]"
    )
    assert spelled(Seed(), SHORT) == "### Language:\nHi\n### Code:\n[Yo\n### End]\n"
    assert spelled(ChatML(), SHORT) == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[Yo<|im_end|>]\n")


def test_stop_tokens_and_forced_results() -> None:
    for template, stops in ((Roles(), {"<eos>", "</tool_call>"}), (ChatML(), {"<|im_end|>"}), (Seed(), {"### End"})):
        tokenizer = ByteTokenizer(template.special_tokens)
        assert template.stop_ids(tokenizer) == {tokenizer.special[name] for name in stops}
        template.require(tokenizer)
    # A row that stopped after a call goes on with the ids that training has there.
    messages = [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "calc", "arguments": "1"}}]},
        {"role": "tool", "content": "<eos> 3"},
        {"role": "assistant", "content": "C"},
    ]
    for template in (Roles(), ChatML()):
        tokenizer = ByteTokenizer(template.special_tokens)
        called = template.render(conversation_of(messages[:2]), tokenizer)
        row = called.ids[: np.flatnonzero(called.is_target)[-1] + 1].tolist()
        row += template.results_ids(["<eos> 3"], tokenizer).tolist()
        whole = template.render(conversation_of(messages), tokenizer).ids.tolist()
        assert whole[: len(row)] == row and bytes(whole[len(row) : len(row) + 1]) == b"C"


def test_noncharacters_in_a_text_survive() -> None:
    text = "a\ufdd0\ufdd1b\ufdd2c\ufdd3\0"
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    template = Roles()
    tokenizer = ByteTokenizer(template.special_tokens)
    rendered = template.render(conversation_of(messages), tokenizer)
    assert tokenizer.decode(rendered.ids[rendered.is_target]) == text
    assert tokenizer.decode(rendered.ids) == text + text


MARKED = "{% generation %}{{ messages[1].content }}<|end|>{% endgeneration %}"


@pytest.mark.parametrize(
    "source, what",
    [
        ("{{ messages[0].content }", "the chat template cannot be read (chat_template.path="),
        ("{{ messages[0].content }}", "the chat template does not mark what is generated"),
        (
            "{% generation %}{{ messages[1].content }}{% endgeneration %}",
            "turns of the chat template have no stop token",
        ),
        (f"<|x|>{MARKED}", "the chat template writes <|x|>, which is no special token of the tokenizer"),
        (f"{{{{ raise_exception('no') }}}}{MARKED}", "turns of the chat template have no stop token"),
        (
            f"{{% if add_generation_prompt %}}x{{% endif %}}{MARKED.replace('1', '0')}",
            "changes the text before message 2",
        ),
    ],
)
def test_refused_templates(source: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(source, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        template = FileTemplate(path=str(tmp_path / "t.jinja"))
        template.require(ByteTokenizer(["<|end|>"]))
        template.check_prompts(conversation_of(SHORT))
    assert what in str(caught.value)


def test_a_template_refuses_a_conversation_and_names_of_tokens_are_passed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"refuses a conversation .*has turns of user and assistant only"):
        Seed().render(
            conversation_of([{"role": "system", "content": "x"}, *SHORT]), ByteTokenizer(Seed().special_tokens)
        )
    with pytest.raises(UserError, match="no such chat template"):
        FileTemplate(path=str(tmp_path))
    template = ChatTemplate(f"{{{{ bos_token }}}}{MARKED}{{{{ eos_token }}}}")
    tokenizer = ByteTokenizer(template.special_tokens)
    assert template.render(conversation_of(SHORT), tokenizer).ids.tolist() == [256, *b"Yo", 257, 256]


@pytest.mark.parametrize(
    "source", ["{{ ''.__class__.mro() }}", "{% set n = namespace() %}{% set n.__x = 1 %}", "{{ dict.mro() }}"]
)
def test_templates_run_in_a_sandbox(source: str) -> None:
    template = ChatTemplate(source + MARKED)
    with pytest.raises(UserError, match="refuses a conversation"):
        template.text(conversation_of(SHORT))
