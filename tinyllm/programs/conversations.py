"""Runs on conversations: their checks, their samples, and the chat template that a model was trained with."""

from typing import Any

from omegaconf import DictConfig

from tinyllm.config.no_effect import takes_template
from tinyllm.config.targets import Option
from tinyllm.data.chat.corpus import ConversationCorpus
from tinyllm.data.chat.messages import USER, Conversation, Message
from tinyllm.data.chat.rows import ConversationData
from tinyllm.data.chat.template import ChatTemplate
from tinyllm.data.packed_windows import BEST_FIT, KEY
from tinyllm.data.prompt_data import PromptData
from tinyllm.data.run_data import RunData
from tinyllm.errors import UserError
from tinyllm.programs.builders import plain
from tinyllm.programs.load_model import stored_template
from tinyllm.programs.saved_model import SavedModel
from tinyllm.programs.saved_weights import WeightSource
from tinyllm.runs.layout import TEMPLATE


def check_conversations(cfg: DictConfig, corpus: Any, init_from: WeightSource | None) -> None:
    """Refuse what does not go with conversations, and a template that differs from that of the initial weights.

    Raises:
        UserError: names the key.
    """
    template = template_in(corpus)
    if template is None:
        return
    chats = [c for c in getattr(corpus, "sources", {"": corpus}).values() if isinstance(c, ConversationCorpus)]
    if cfg.curriculum.enabled and chats:
        hint = "conversations are never cut, and a curriculum shortens sequences; leave one of the two out"
        raise UserError("no curriculum of conversations", key="curriculum.enabled", value=True, hint=hint)
    if any(chat.packing == BEST_FIT for chat in chats) and not cfg.model.document_mask:
        hint = "set model.document_mask=true, or conversations of one window would see each other"
        raise UserError("packed conversations need a mask", key=KEY, value=BEST_FIT, hint=hint)
    stored = stored_template(init_from.path).get(TEMPLATE) if init_from is not None else None
    if stored is not None and stored != template.source:
        hint = f"use chat_template=file chat_template.path={init_from.path / TEMPLATE}"  # type: ignore[union-attr]
        what = "the chat template differs from the one that the weights of init_from were trained with"
        raise UserError(what, key="init_from", value=cfg.init_from, hint=hint)


def template_in(corpus: Any) -> ChatTemplate | None:
    """The chat template that renders a data set; None if it holds no conversations."""
    return corpus.chat_template if getattr(corpus, "special_tokens", ()) else None


def sample_prompt(data: RunData, prompt: str) -> dict[str, Any]:
    """Arguments of ``generate_text`` for a sample during training.

    Of conversations, the sample is an answer: to ``prompt`` as a user's message, or to the first of validation.
    """
    chats = [source for source in data.sources.values() if isinstance(source, ConversationData | PromptData)]
    if not chats:
        return {"prompt": prompt}
    asked = Conversation((Message(USER, prompt),)) if prompt else chats[0].first_prompt
    text = chats[0].chat_template.text(asked, add_generation_prompt=True)
    stops = chats[0].chat_template.stop_ids(data.tokenizer)
    names = [name for name, token in data.tokenizer.special.items() if token in stops]
    return {"prompt": text, "special": True, "stop": names}


def template_of(dataset: DictConfig, saved: SavedModel, *, allow: frozenset[Option]) -> dict[str, Any]:
    """The template of a saved model, as an argument of a data set of conversations; none for other data.

    Raises:
        UserError: the model has none.
    """
    return {"chat_template": saved_template(saved)} if takes_template(plain(dataset), allow=allow) else {}


def saved_template(saved: SavedModel) -> ChatTemplate:
    """The chat template that a model was trained with.

    Raises:
        UserError: it has none, or one without generation marks.
    """
    source = saved.chat.get(TEMPLATE) or saved.chat.get("tokenizer_config.json")
    if not isinstance(source, str):
        hint = "train one on conversations: python -m tinyllm.train dataset=chat dataset.path=… init_from=…"
        raise UserError("the model has no chat template", key="run", value=str(saved.path), hint=hint)
    return ChatTemplate(source, key="run", value=str(saved.path))


def turn_ends(saved: SavedModel) -> dict[str, Any]:
    """``eos_token_id`` of a model with a chat template: its end-of-text, and the stop tokens of a turn."""
    if saved.chat.get(TEMPLATE) is None:
        return {}
    tokenizer = saved.tokenizer
    stops = saved_template(saved).stop_ids(tokenizer) - tokenizer.end_ids
    return {"eos_token_id": [*sorted(tokenizer.end_ids), *sorted(stops)]}
