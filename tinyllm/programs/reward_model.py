"""``reward=[model]``: scores of a trained reward model."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from tinyllm.config.targets import Option
from tinyllm.data.chat.messages import ASSISTANT, Conversation, Message
from tinyllm.data.chat.template import Rendered
from tinyllm.data.prompts import Prompt
from tinyllm.errors import UserError
from tinyllm.inference.rewards.base import Completion, Reward
from tinyllm.programs.builders import scores_answers
from tinyllm.programs.conversations import saved_template
from tinyllm.programs.load_model import model_of, open_saved
from tinyllm.programs.saved_weights import digest_at
from tinyllm.tokenizers import Tokenizer
from tinyllm.utils.text import print_note

CPU = torch.device("cpu")
ROWS = 32
"""Answers that are read at a time."""
KEY = "reward.model.run"


class Model(Reward):
    """The score of a run of ``objective=reward``, which reads prompt and answer as its own template renders them.

    The model is loaded once, when it is first asked, and stays frozen. It is no part of the checkpoints of a run that
    uses it; they record a digest of its weights.

    Args:
        run: the run, one of its checkpoints, or a Hugging Face directory.
        checkpoint: ``best``, ``last`` or a checkpoint directory.
        device: where the model computes.
        trusted: classes beyond tinyllm's own that its configuration may name.

    Raises:
        UserError: the run is no reward model, or was not trained on conversations.
    """

    def __init__(
        self,
        *,
        weight: float,
        run: str,
        checkpoint: str,
        device: torch.device = CPU,
        trusted: frozenset[Option] = frozenset(),
    ) -> None:
        super().__init__(weight=weight)
        self._run, self._device, self._trusted = run, device, trusted
        try:
            self._saved = open_saved(run, checkpoint=checkpoint, allow=trusted, tell=print_note)
            if not scores_answers(self._saved.cfg, allow=trusted):
                hint = "train one: python -m tinyllm.train objective=reward dataset=preferences …"
                raise UserError("the run is no reward model", key=KEY, value=run, hint=hint)
            self._template = saved_template(self._saved)
        except UserError as error:
            if error.key != "run":
                raise
            raise UserError(error.what, key=KEY, value=run, hint=error.hint) from error
        self.digest = digest_at(self._saved.path)

    @cached_property
    def _model(self) -> Any:
        return model_of(self._saved, device=self._device, allow=self._trusted, scores=True).requires_grad_(False)

    def check(self, prompts: Sequence[Prompt], *, tokenizer: Tokenizer, max_new_tokens: int) -> None:
        # In another tokenizer an answer may have fewer tokens than the model chooses, so only its first is certain;
        # what is too long after all is refused when it is scored.
        needed = max_new_tokens if tokenizer.fingerprint() == self._saved.tokenizer.fingerprint() else 1
        longest = max(len(self._rendered(prompt).ids) for prompt in prompts)
        context = self._saved.cfg.model.max_seq_len
        if longest + needed > context:
            hint = (
                f"the longest prompt has {longest} tokens, its context {context}, and {max_new_tokens} new tokens are"
            )
            hint += " allowed; allow fewer, use shorter prompts, or a reward model with a longer context"
            raise UserError("prompt and answer do not fit into the reward model", key=KEY, value=self._run, hint=hint)

    @torch.no_grad()
    def scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        rows = [self._ids(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))  # little padding
        found = [0.0] * len(rows)
        for first in range(0, len(rows), ROWS):
            chosen = by_length[first : first + ROWS]
            ends = torch.tensor([len(rows[row]) - 1 for row in chosen], device=self._device)
            ids_BT = np.zeros((len(chosen), len(rows[chosen[-1]])), dtype=np.int64)
            for place, row in enumerate(chosen):
                ids_BT[place, : len(rows[row])] = rows[row]
            hidden_BTC = self._model(torch.from_numpy(ids_BT).to(self._device))
            scores_B = self._model.score(hidden_BTC[torch.arange(len(chosen), device=self._device), ends])
            for row, score in zip(chosen, scores_B.tolist(), strict=True):
                found[row] = score
        return found

    def _ids(self, prompt: Prompt, completion: Completion) -> np.ndarray:
        """A prompt with its answer, up to the stop token; without one if the answer was cut off.

        Raises:
            UserError: it cannot be expressed, or is longer than the context.
        """
        rendered = self._rendered(prompt, completion.messages or (Message(ASSISTANT, completion.text),))
        end = int(np.flatnonzero(rendered.is_target)[-1]) + 1
        if not completion.ended and int(rendered.ids[end - 1]) in self._template.stop_ids(self._saved.tokenizer):
            end -= 1
        if end > self._saved.cfg.model.max_seq_len:
            hint = f"{prompt.name}: {end} tokens, its context has {self._saved.cfg.model.max_seq_len}; limit new tokens"
            raise UserError("an answer is too long for the reward model", key=KEY, value=self._run, hint=hint)
        return rendered.ids[:end]

    def _rendered(self, prompt: Prompt, said: Sequence[Message] = ()) -> Rendered:
        """A prompt and what was said after it; nothing: up to where an answer begins.

        Raises:
            UserError: the model's tokenizer cannot express it.
        """
        before = prompt.conversation
        whole = Conversation((*before.messages, *said), before.tools)
        try:
            return self._template.render(whole, self._saved.tokenizer, add_generation_prompt=not said)
        except UserError as error:
            hint = f"{prompt.name}: {error.hint or 'its tokenizer cannot express the text'}"
            what = f"the reward model cannot read {'an answer' if said else 'a prompt'}: {error.what}"
            raise UserError(what, key=KEY, value=self._run, hint=hint) from error
