"""Chat templates: a conversation as token ids, and which of them the assistant says.

Every template is a Jinja template with ``{% generation %}`` marks, as transformers reads them. The same text renders
training data, prompts and, after an export, what ``apply_chat_template`` returns.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from tinyllm.data.chat.engine import TARGET_BEGIN, TARGET_END, CompiledTemplate, TemplateProblem
from tinyllm.data.chat.messages import ASSISTANT, TOOL, USER, Conversation, Message, ToolCall
from tinyllm.errors import UserError
from tinyllm.tokenizers import Tokenizer
from tinyllm.tokenizers.special_tokens import STANDARD, SpecialTokenMatcher
from tinyllm.utils.files import expand_home, read_text

LARGEST = 1 << 20
"""Size limit of a template file in bytes."""
TEXT_BEGIN, TEXT_END = "\ufdd0", "\ufdd1"
"""Noncharacters around what must stay text in a rendered conversation."""
MARKS = (TEXT_BEGIN, TEXT_END, TARGET_BEGIN, TARGET_END)
PIECES = re.compile(f"([{''.join(MARKS)}])")
NAMED = re.compile(r"<\|[^|<>\s]+\|>|</?s>")
"""How the special tokens of published templates are spelled, besides those of ``STANDARD``."""


class Rendered(NamedTuple):
    """A conversation as the model reads it.

    Attributes:
        ids: int64 (n,).
        is_target: bool (n,): whether the assistant says the token; the loss counts these.
    """

    ids: np.ndarray
    is_target: np.ndarray


class ChatTemplate:
    """Renders conversations.

    Args:
        source: the Jinja template.
        key: the setting that named it, for error messages.
        value: its value.

    Raises:
        UserError: it is no template, or it does not mark what the assistant generates.
    """

    def __init__(self, source: str, *, key: str = "chat_template", value: object = None) -> None:
        self.source = source
        self._key, self._value = key, value
        try:
            self._compiled = CompiledTemplate(source)
        except TemplateProblem as problem:
            raise UserError("the chat template cannot be read", key=key, value=value, hint=str(problem)) from None
        if not self._compiled.marks_targets:
            hint = "enclose what the assistant says, its stop token included, in {% generation %} … {% endgeneration %}"
            raise UserError("the chat template does not mark what is generated", key=key, value=value, hint=hint)

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """The special tokens that it writes, in a fixed order."""
        literals = "\0".join(self._compiled.literals)
        named = dict.fromkeys(NAMED.findall(literals))
        return tuple(token for token in STANDARD if token in literals) + tuple(t for t in named if t not in STANDARD)

    def require(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that lacks a token of the template, or with which a turn would have no end.

        Raises:
            UserError: names the token.
        """
        missing = [token for token in self.special_tokens if token not in tokenizer.special]
        if missing:
            hint = f"use tokenizer.special_tokens=auto, or include {', '.join(missing)} in the list"
            raise UserError(
                f"the chat template writes {missing[0]}, which is no special token of the tokenizer",
                key=self._key,
                value=self._value,
                hint=hint,
            )
        if not self.stop_ids(tokenizer):
            hint = "the last thing in {% generation %} must be a special token, or the model never learns to stop"
            raise UserError(
                "turns of the chat template have no stop token", key=self._key, value=self._value, hint=hint
            )

    def render(
        self, conversation: Conversation, tokenizer: Tokenizer, *, add_generation_prompt: bool = False
    ) -> Rendered:
        """The ids of a conversation. Text that spells a special token is encoded as text.

        Args:
            add_generation_prompt: end with what precedes an assistant's turn.

        Raises:
            UserError: the template refuses the conversation, or the tokenizer cannot express a text.
        """
        return self._encoded([self._text(conversation, tokenizer, add_generation_prompt)], tokenizer)[0]

    def render_all(self, conversations: Iterable[Conversation], tokenizer: Tokenizer) -> list[Rendered]:
        """:meth:`render` of each conversation, several times as fast."""
        return self._encoded([self._text(conversation, tokenizer) for conversation in conversations], tokenizer)

    def _encoded(self, texts: Sequence[str], tokenizer: Tokenizer) -> list[Rendered]:
        """The ids of marked texts."""
        special = _matcher(tuple(_special_of(tokenizer).items()))
        plain = tokenizer.matching(False) if tokenizer.match_special else tokenizer
        pieces = [list(_pieces(text, special)) for text in texts]
        encoded = iter(
            plain.encode_batch([text for row in pieces for text, special_id, _ in row if special_id is None])
        )
        found = []
        for row in pieces:
            ids = [next(encoded) if special_id is None else [special_id] for _, special_id, _ in row]
            is_target = np.repeat([target for _, _, target in row], [len(part) for part in ids]).astype(bool)
            found.append(Rendered(np.concatenate([np.zeros(0), *ids]).astype(np.int64), is_target))
        return found

    def text(self, conversation: Conversation, *, add_generation_prompt: bool = False) -> str:
        """The rendered text, without marks; spelled special tokens look like real ones."""
        return PIECES.sub("", self._text(conversation, None, add_generation_prompt))

    def plain_texts(self, conversation: Conversation) -> list[str]:
        """The rendered texts between special tokens: what the tokenizer encodes."""
        special = dict.fromkeys(self.special_tokens, 0)
        rendered, matcher = self._text(conversation, None, special=special), _matcher(tuple(special.items()))
        return [text for text, special_id, _ in _pieces(rendered, matcher) if special_id is None]

    def check_prompts(self, conversation: Conversation) -> None:
        """Refuse a template whose prompts differ from what it trains on.

        Before every turn of the assistant, the messages so far, rendered as a prompt, must be the beginning of the
        whole conversation; otherwise the model would answer prompts that it has never seen.

        Raises:
            UserError: names the message.
        """
        whole = self.text(conversation)
        for number, message in enumerate(conversation.messages):
            before = Conversation(conversation.messages[:number], conversation.tools)
            if message.role != ASSISTANT or not number:
                continue
            if not whole.startswith(self.text(before, add_generation_prompt=True)):
                hint = "rendered as a prompt, the messages before it are not the beginning of the whole conversation"
                raise UserError(
                    f"the chat template changes the text before message {number + 1}",
                    key=self._key,
                    value=self._value,
                    hint=hint,
                )

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The tokens with which the assistant hands over: at the end of a turn, and after the call of a tool."""
        asked = Message(USER, "a")
        answers = (Message(ASSISTANT, "b"), Message(ASSISTANT, "", (ToolCall("c", {"d": "e"}),)))
        ids = set()
        for answer in answers:
            try:
                rendered = self.render(Conversation((asked, answer)), tokenizer)
            except UserError:
                continue  # e.g. a template without tools, or a tokenizer without these letters
            last = rendered.ids[rendered.is_target][-1:]
            ids |= {int(i) for i in last if int(i) in tokenizer.special.values()}
        return frozenset(ids)

    def results_ids(self, results: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
        """What follows the calls of tools, until the assistant goes on: to be appended to the ids so far.

        Args:
            results: of the calls that the assistant has just made, in their order.
        """
        calls = tuple(ToolCall("c", {}) for _ in results)
        messages = [Message(USER, "a"), Message(ASSISTANT, "", calls), *(Message(TOOL, text) for text in results)]
        rendered = self.render(Conversation(tuple(messages)), tokenizer, add_generation_prompt=True)
        return rendered.ids[np.flatnonzero(rendered.is_target)[-1] + 1 :]

    def _text(
        self,
        conversation: Conversation,
        tokenizer: Tokenizer | None,
        prompt: bool = False,
        special: Mapping[str, int] = MappingProxyType({}),
    ) -> str:
        """The rendered text with marks.

        Args:
            tokenizer: its special tokens stay text where messages spell them; None: those in ``special`` do.
        """
        matcher = _matcher(tuple((special if tokenizer is None else _special_of(tokenizer)).items()))
        guarded = _guard(conversation.to_dict(), matcher)
        values = {"tools": None, "documents": None, **guarded, "add_generation_prompt": prompt}
        values |= {} if tokenizer is None else _named_tokens(tokenizer)
        try:
            return self._compiled.render(values)
        except TemplateProblem as problem:
            raise UserError(
                "the chat template refuses a conversation", key=self._key, value=self._value, hint=str(problem)
            ) from None


class Packaged(ChatTemplate):
    """A template that comes with the package."""

    name: str

    def __init__(self) -> None:
        file = Path(__file__).parent / "templates" / f"{self.name}.jinja"
        super().__init__(read_text(file), value=self.name)


class Roles(Packaged):
    """``<bos><user>Hi<eos><assistant>Hello<eos>``; a tool's result follows its call within the turn."""

    name = "roles"


class ChatML(Packaged):
    """``<|im_start|>user`` … ``<|im_end|>``, with tools as Qwen 2.5 writes them."""

    name = "chatml"


class Seed(Packaged):
    """``### Language:`` … ``### Code:`` … ``### End``; no system message and no tools."""

    name = "seed"


class FileTemplate(ChatTemplate):
    """A template from a file.

    Args:
        path: a Jinja template such as the ``chat_template.jinja`` of a model directory, or of a run.
    """

    def __init__(self, *, path: str) -> None:
        file = expand_home(str(path))
        file = file / "chat_template.jinja" if file.is_dir() else file
        key = "chat_template.path"
        if not file.is_file():
            raise UserError("no such chat template", key=key, value=path, hint="give a file in Jinja's format")
        try:
            source = read_text(file, largest=LARGEST)
        except (OSError, ValueError) as error:
            raise UserError("the chat template cannot be read", key=key, value=path, hint=str(error)) from None
        super().__init__(source, key=key, value=path)


def _special_of(tokenizer: Tokenizer) -> dict[str, int]:
    """The special tokens that a template may write; ``<unk>`` stands for unknown characters and has no spelling."""
    return {text: i for text, i in tokenizer.special.items() if i != tokenizer.unk_id}


def _named_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """``bos_token`` and so on, as transformers passes them to a template; absent without such a token."""
    spelled = {i: text for text, i in tokenizer.special.items()}
    ends = [tokenizer.eot_id] if not tokenizer.eos_ids else sorted(tokenizer.eos_ids)
    ids = {"bos_token": tokenizer.begin_id, "eos_token": ends[0], "unk_token": tokenizer.unk_id}
    return {name: spelled[i] for name, i in ids.items() if i in spelled}


@lru_cache(maxsize=16)
def _matcher(special: tuple[tuple[str, int], ...]) -> SpecialTokenMatcher:
    """The matcher of these tokens, kept: to build one takes as long as to render a short conversation."""
    return SpecialTokenMatcher(dict(special))


def _guard(value: Any, special: SpecialTokenMatcher) -> Any:
    """A JSON value with marks around every spelled special token, and without characters that are marks themselves."""
    if isinstance(value, str):
        parts = (_guarded(part, special_id) for part, special_id in special.split(value))
        return "".join(parts)
    if isinstance(value, dict):
        return {name: _guard(child, special) for name, child in value.items()}
    return [_guard(child, special) for child in value] if isinstance(value, list) else value


def _guarded(part: str, special_id: int | None) -> str:
    if special_id is not None:
        return f"{TEXT_BEGIN}{part}{TEXT_END}"
    # A text may contain these noncharacters, though no program should exchange them; they are written by number.
    return PIECES.sub(lambda found: f"{TEXT_BEGIN}\0{MARKS.index(found[0])}{TEXT_END}", part)


def _pieces(rendered: str, special: SpecialTokenMatcher) -> Iterator[tuple[str, int | None, bool]]:
    """Yields the parts of a marked text: (text, id of a special token or None, whether it is a target)."""
    is_target = is_text = False
    for part in PIECES.split(rendered):
        if part in (TARGET_BEGIN, TARGET_END):
            is_target = part == TARGET_BEGIN
        elif part in (TEXT_BEGIN, TEXT_END):
            is_text = part == TEXT_BEGIN
        elif is_text:
            yield MARKS[int(part[1])] if part.startswith("\0") else part, None, is_target
        else:
            for text, special_id in special.split(part):
                yield text, special_id, is_target
