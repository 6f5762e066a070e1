"""``POST /v1/chat/completions``: the next message of a conversation."""

from tinyllm.programs.serve.answering import Answering
from tinyllm.programs.serve.errors import invalid
from tinyllm.programs.serve.schema import ChatRequest
from tinyllm.programs.serve.served import ServedModel
from tinyllm.programs.serve.worker import Worker


async def start_chat(served: ServedModel, worker: Worker, body: ChatRequest) -> Answering:
    """Check a conversation and hand it to the engine.

    Raises:
        APIError: it cannot be answered.
    """
    why = f"{served.name} was trained without a chat template: use /v1/completions, which continues plain text"
    raise invalid(why, param="messages", code="no_chat_template")
