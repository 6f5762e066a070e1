"""The requests of the interface: OpenAI's fields that this server knows, and the sampling settings of tinyllm.

A field that is not here is refused by name: a setting that was accepted and ignored would be a silent error.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_CHOICES = 128
"""Most choices in the answer to one request: its prompts times ``n``."""
MOST_STOPS = 16
MOST_TOP = 20
"""Most alternatives reported beside a token."""

Prompt = str | list[int] | list[str] | list[list[int]]
TokenIds = Annotated[int, Field(ge=0)]
Off = Annotated[float, Field(ge=0, le=0)] | None
"""A setting of OpenAI's that this server has not; clients send the value that turns it off."""


class Strict(BaseModel):
    """Types are not converted, and unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    include_usage: bool = Field(False, description="send a last chunk with the number of tokens")


class SampledRequest(Strict):
    """What completions and chat have in common."""

    model: str = Field(description="name of a model from /v1/models")
    temperature: float | None = Field(1.0, ge=0, le=1000, allow_inf_nan=False, description="0: the most likely token")
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, description="sample from the k most likely tokens only")
    min_p: float | None = Field(None, ge=0, le=1, description="leave out tokens below this fraction of the largest")
    repetition_penalty: float | None = Field(1.0, gt=0, le=1000, allow_inf_nan=False)
    n: int | None = Field(1, ge=1, le=MOST_CHOICES, description="choices per prompt")
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="the same seed gives the same text")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="accepted for clients that send it; it changes nothing")
    presence_penalty: Off = None
    frequency_penalty: Off = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None


class CompletionRequest(SampledRequest):
    prompt: Prompt | None = Field(None, description="text, token ids, or a list of either; null: begin a document")
    max_tokens: int | None = Field(16, ge=0, description="0 with echo: only score the prompt")
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP, description="alternatives reported beside each token")
    echo: bool | None = Field(False, description="begin the text with the prompt")
    suffix: None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: str


class FunctionCall(Strict):
    name: str
    arguments: str = Field(description="the arguments as JSON")


class ToolCall(Strict):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Strict):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(Strict):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class TextFormat(Strict):
    type: Literal["text"]


class ChatRequest(SampledRequest):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1, description="null: as many as the context has room for")
    max_completion_tokens: int | None = Field(None, ge=1, description="the newer name of max_tokens")
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    response_format: TextFormat | None = None
