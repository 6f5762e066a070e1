"""What lies on the desk of the page Write: the models that were chosen, the settings, and the texts.

There is one desk in a studio, so that a reload and a second browser show the same.
"""

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from tinyllm.data.chat.messages import Message
from tinyllm.errors import UserError
from tinyllm.inference.tools.base import Tool
from tinyllm.studio.writing import form
from tinyllm.studio.writing.models import CheckpointId, checkpoints, identified, load, writable_runs
from tinyllm.studio.writing.pieces import Settings, answer, continuation
from tinyllm.studio.writing.writer import Job, Work, Writer

N_SIDES = 2
RUN, MESSAGE = "run", "message"
"""Fields besides those of :data:`form.KEYS` that an error may belong to."""


@dataclass
class Turn:
    """A text in progress or written: what the user gave, and what the model made of it."""

    given: str
    job: Job


@dataclass
class Side:
    """One of the two models, and its texts.

    Attributes:
        run: its name below the folder of runs; "": none.
        checkpoint: the name of a checkpoint of the run.
        turns: one text, or the turns of a conversation.
        error: why nothing was started.
    """

    run: str = ""
    checkpoint: str = ""
    turns: list[Turn] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    error: str = ""

    @property
    def is_writing(self) -> bool:
        """Whether its newest text still grows."""
        return bool(self.turns) and not self.turns[-1].job.is_over


class Desk:
    """The state behind the page.

    Args:
        outputs: the folder of run directories.
        config_dir: a folder of option files besides ``conf/``.

    Attributes:
        fields: the settings as typed, by key.
        errors: what is wrong with them, by key.
    """

    def __init__(self, outputs: Path, config_dir: Path | None = None) -> None:
        self.outputs, self.config_dir = outputs, config_dir
        self.sides = [Side() for _ in range(N_SIDES)]
        self.fields = dict.fromkeys(form.KEYS, "")
        self.errors: dict[str, str] = {}
        self.chat = False
        self.prompt = self.message = self.system = ""
        self.tool = form.NO_TOOL

    @cached_property
    def writer(self) -> Writer:
        """The thread that writes."""
        return Writer(load=partial(load, allow=partial(form.allowed, self.config_dir)))

    @property
    def is_writing(self) -> bool:
        """Whether any text still grows."""
        return any(side.is_writing for side in self.sides)

    def runs(self) -> dict[str, Path]:
        """The runs that can be chosen, by name; it reads folders, so no event loop should wait for it."""
        return writable_runs(self.outputs)

    def choose(self, side: Side, run: str, runs: dict[str, Path]) -> None:
        """Choose a run, its newest checkpoint, or with "" none. What the other model wrote is cleared.

        Args:
            runs: those that there are.
        """
        self.clear(side)
        side.run = run if run in runs else ""
        side.checkpoint = next(iter(checkpoints(runs[side.run])), "") if side.run else ""

    def use_checkpoint(self, side: Side, name: str) -> None:
        """Choose another checkpoint of the same run. A conversation begins anew."""
        if self.chat:
            self.clear(side)
        side.checkpoint = name

    def clear(self, side: Side) -> None:
        """End and forget the texts of a side."""
        self.stop(side)
        side.turns, side.messages, side.error = [], [], ""

    def stop(self, *sides: Side) -> None:
        """End what is being written, on all sides unless some are given."""
        for side in sides or self.sides:
            if side.is_writing:
                self.writer.cancel(side.turns[-1].job)

    def set_chat(self, chat: bool) -> None:
        """Change between continuing a text and a conversation; what was written is cleared."""
        if chat != self.chat:
            self.chat = chat
            for side in self.sides:
                self.clear(side)

    def check(self) -> Settings | None:
        """The settings; None if a field is wrong, and then :attr:`errors` says why."""
        self.errors = {}
        try:
            return form.settings_of(self.fields, chat=self.chat)
        except UserError as error:
            self.errors[error.key or form.KEYS[0]] = str(error)
            return None

    def write(self, runs: dict[str, Path]) -> bool:
        """Begin to write on every side that has a run; false if there was something wrong.

        What is wrong stands in :attr:`errors` and :attr:`Side.error`.
        """
        settings = self.check()
        if settings is None:
            return False
        chosen = [side for side in self.sides if side.run]
        if not chosen:
            self.errors[RUN] = "choose a run"
        if self.chat and not self.message.strip():
            self.errors[MESSAGE] = "write a message"
        try:
            tool = form.tool_named(self.tool, self.config_dir) if self.chat else None
        except UserError as error:
            self.errors["tools"] = str(error)
        if self.errors:
            return False
        given = self.message if self.chat else self.prompt

        for side in chosen:
            self.stop(side)
            side.error = ""
            try:
                which = self._which(side, runs)
            except UserError as error:
                side.error = str(error)
                continue
            job = self.writer.start(which, self._work(side, settings, tool, given))
            side.turns = [*(side.turns if self.chat else ()), Turn(given, job)]
        if self.chat:
            self.message = ""
        return not any(side.error for side in chosen)

    def command(self, side: Side, runs: dict[str, Path]) -> str:
        """The command that does the same in a terminal; "" without a run."""
        run = runs.get(side.run)
        if run is None:
            return ""
        if self.chat:
            return form.chat_command_of(run, side.checkpoint, self.fields, system=self.system, tool=self.tool)
        return form.command_of(run, side.checkpoint, self.fields, prompt=self.prompt)

    def _work(self, side: Side, settings: Settings, tool: Tool | None, given: str) -> Work:
        if not self.chat:
            return lambda loaded: continuation(loaded, settings, given)
        system, messages = self.system, side.messages
        return lambda loaded: answer(loaded, settings, given, messages=messages, tool=tool, system=system)

    def _which(self, side: Side, runs: dict[str, Path]) -> CheckpointId:
        if side.run not in runs:
            raise UserError("the run is no longer there", key=RUN, value=side.run, hint="choose another one")
        return identified(runs[side.run], side.checkpoint)
