"""Mistakes in conversations and chat templates, each as typed in a shell with what must be said about it."""

from typing import Any

from tests.support.bad_data import Bad, bad

ASKED, SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}
CALLED = SAID | {"tool_calls": [{"function": {"name": "calc", "arguments": {}}}]}
WRONG_CONVERSATIONS: dict[str, Any] = {
    "twice": {"messages": [ASKED, ASKED]},
    "role": {"messages": [ASKED | {"role": "bot"}]},
    "unanswered": {"messages": [ASKED]},
    "empty_question": {"messages": [ASKED | {"content": " "}, SAID]},
    "empty": {"messages": [ASKED, SAID | {"content": ""}]},
    "picture": {"messages": [ASKED, SAID | {"content": [{"type": "image_url"}]}]},
    "result": {"messages": [ASKED, {"role": "tool", "content": "1"}, SAID]},
    "tool": {"messages": [ASKED, CALLED], "tools": [{"name": "search"}]},
}
"""Records that are no conversations, each for one reason; by the name of the file that holds it."""


def bad_chat(name: str, where: str, hint: str) -> Bad:
    """Training on a file of one wrong conversation."""
    return bad(f"dataset=chat dataset.path=IN/{name}.jsonl", where, hint)


def bad_template(name: str, where: str, hint: str) -> Bad:
    """Training with a wrong template."""
    return bad(f"dataset=chat dataset.path=IN/chats.jsonl chat_template=file chat_template.path=IN/{name}", where, hint)


CONVERSATIONS = {
    "a text for conversations": bad_chat("lines", "IN/lines.jsonl:1", "`conversations`"),
    "a conversation that is no JSON": bad_chat("torn", "IN/torn.jsonl:1, column", "one object"),
    "two questions in a row": bad_chat("twice", "twice.jsonl:1 message 2", "merge them"),
    "an unknown role": bad_chat("role", "role.jsonl:1 message 1", "one of system, user, assistant, tool"),
    "a question without an answer": bad_chat("unanswered", "unanswered.jsonl:1", "leave it out"),
    "an empty answer": bad_chat("empty", "empty.jsonl:1 message 2", "leave the message out"),
    "an empty question": bad_chat("empty_question", "empty_question.jsonl:1 message 1", "leave the message out"),
    "an answer that is no text": bad_chat("picture", "picture.jsonl:1 message 2", "only text"),
    "a result that nobody asked for": bad_chat("result", "result.jsonl:1 message 2", "no tool_calls left"),
    "a call of another tool": bad_chat("tool", "tool.jsonl:1 message 2", "`tools` lists search"),
    "a validation that is the training": bad(
        "dataset=chat dataset.path=IN/chats.jsonl dataset.val_path=IN/chats.jsonl",
        "dataset.val_path=IN/chats.jsonl",
        "leave dataset.val_path out",
    ),
    "a conversation too long": bad(
        "dataset=chat dataset.path=IN/chats.jsonl trainer.seq_len=8",
        "trainer.seq_len=8",
        "raise it, up to model.max_seq_len",
    ),
    "conversations in one window without a mask": bad(
        "dataset=chat dataset.path=IN/chats.jsonl dataset.packing=best_fit",
        "dataset.packing=best_fit",
        "set model.document_mask=true",
    ),
    "an order of conversations that are packed": bad(
        "dataset=chat dataset.path=IN/chats.jsonl dataset.packing=best_fit dataset.group_by_length=false"
        " model.document_mask=true",
        "dataset.group_by_length=false",
        "dataset.packing=best_fit",
    ),
    "an order of conversations in evaluation": bad(
        "run=IN/talking dataset=chat dataset.path=IN/chats.jsonl dataset.group_by_length=false",
        "dataset.group_by_length=false",
        "leave it out",
        program="evaluate",
        base=False,
    ),
    "an order of prompts": bad(
        "model=pico objective=grpo reward=[exact] dataset=tasks init_from=IN/run dataset.group_by_length=false",
        "dataset.group_by_length=false",
        "leave it out",
        base=False,
    ),
    "a packing that conversations do not have": bad(
        "dataset=chat dataset.path=IN/chats.jsonl dataset.packing=concat", "dataset.packing=concat", "best_fit"
    ),
    "packing of prompts": bad(
        "model=pico objective=grpo reward=[exact] dataset=tasks init_from=IN/run dataset.packing=best_fit",
        "dataset.packing=best_fit",
        "leave it out",
        base=False,
    ),
    "a token that the tokenizer lacks": bad(
        "dataset=chat dataset.path=IN/chats.jsonl tokenizer.special_tokens=[<bos>]",
        "tokenizer.special_tokens=",
        "include <eos>",
    ),
    "a template for a text": bad("chat_template=chatml", "chat_template=ChatML", "choose dataset=chat"),
    "a template without marks": bad_template("good.txt", "chat_template.path=IN/good.txt", "{% generation %}"),
    "a template that changes what was said": bad_template(
        "changing.jinja", "chat_template.path=IN/changing.jinja", "not the beginning"
    ),
    "a template that is not there": bad_template("no.jinja", "chat_template.path=IN/no.jinja", "Jinja"),
    "a template that is not that of the weights": bad(
        "dataset=chat dataset.path=IN/chats.jsonl init_from=IN/talking", "init_from=IN/talking", "chat_template.path="
    ),
    "chat with a model of texts": bad("run=IN/run", "run=", "dataset=chat", program="chat", base=False),
}
