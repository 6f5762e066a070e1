"""The interface of a tool, and how a call by a model is carried out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from tinyllm.errors import UserError
from tinyllm.utils.files import parse_json
from tinyllm.utils.text import escape_control

LONGEST_RESULT = 1000
"""Characters of a result; the model would have to read more."""
MOST_CALLS = 1000


class ToolError(ValueError):
    """A call that a tool refuses; the model reads the message as the result."""


@dataclass(frozen=True, kw_only=True)
class ToolResult:
    """What the model reads after a call."""

    text: str
    is_error: bool = False


class Tool(ABC):
    """A tool with one text as its argument, which a model calls while it answers.

    A class of one's own derives from this one and is named by ``_target_`` in an option file.

    Args:
        max_calls: calls that one answer may make; what a model writes after that is not carried out.

    Attributes:
        name: what the model and OpenAI's format call it.
        argument: name of its argument.
        description: one sentence, for formats that describe their tools to the model.
    """

    name: ClassVar[str] = ""
    argument: ClassVar[str] = "expression"
    description: ClassVar[str] = ""

    def __init__(self, *, max_calls: int) -> None:
        if not 1 <= max_calls <= MOST_CALLS:
            hint = f"1 … {MOST_CALLS}; tools=none allows no calls"
            raise UserError("out of range", key="tools.max_calls", value=max_calls, hint=hint)
        self.max_calls = max_calls

    @abstractmethod
    def run(self, text: str) -> str:
        """The result for an argument. Nothing that a model wrote may be executed as code.

        Raises:
            ToolError: the argument is wrong.
        """

    def call(self, arguments: str) -> ToolResult:
        """Carry out a call; a wrong one gives an error to read and never raises.

        Args:
            arguments: the argument itself, or the JSON object of OpenAI's format that holds it.
        """
        try:
            result = self.run(self.argument_in(arguments))
        except ToolError as error:
            return ToolResult(text=f"error: {_shortened(str(error))}", is_error=True)
        except Exception as error:  # a tool of the user's own must not end a training run
            return ToolResult(text=f"error: {type(error).__name__}: {_shortened(str(error))}", is_error=True)
        return ToolResult(text=_shortened(result))

    def argument_in(self, arguments: str) -> str:
        """The argument of a call.

        Raises:
            ToolError: a JSON object lacks it.
        """
        if not arguments.lstrip().startswith("{"):
            return arguments
        try:
            given = parse_json(arguments)
        except (ValueError, RecursionError) as error:
            raise ToolError("the arguments are not JSON") from error
        if not isinstance(given, dict) or not isinstance(given.get(self.argument), str):
            raise ToolError(f"the arguments need the text {self.argument}")
        return str(given[self.argument])

    def specification(self) -> dict[str, Any]:
        """The tool as an entry of ``tools`` in OpenAI's format."""
        schema = {"type": "object", "properties": {self.argument: {"type": "string"}}, "required": [self.argument]}
        described = {"name": self.name, "description": self.description, "parameters": schema}
        return {"type": "function", "function": described}


def _shortened(text: str) -> str:
    """The text without control characters and within ``LONGEST_RESULT``."""
    text = escape_control(text)
    return text if len(text) <= LONGEST_RESULT else text[:LONGEST_RESULT] + "…"
