"""One answer of `jaxrlhf chat`: from what was said so far to text that appears while it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxrlhf.commands.chat_config import ChatConfig
from jaxrlhf.commands.sampled import batch_scorer
from jaxrlhf.commands.sampling import make_answer
from jaxrlhf.data.chat import split_prompt
from jaxrlhf.data.encoder import Encoder, answer_decoder, encode
from jaxrlhf.data.fields import Text
from jaxrlhf.generation.prompts import pad_prompts
from jaxrlhf.generation.stopping import Decode, GrowingText, before_beginning, before_stop
from jaxrlhf.sharding.mesh import BATCH_AXES, axis_size
from jaxrlhf.sharding.place import place_batch
from jaxrlhf.trainers.judges import refuse_nan
from jaxrlhf.trainers.start import Start
from jaxrlhf.types import PromptBatch

_NARROWEST = 64
"""Columns of the shortest prompt; longer ones have twice as many, and so on: few widths are few compilations."""


class TooLong(ValueError):
    """A conversation that leaves no room for an answer."""


class Reply(NamedTuple):
    """What the model said.

    Attributes:
        text: the answer that counts.
        terminated: whether it ended by itself.
        scores: [K] of all answers by the reward model, or None without one.
        full: whether it was cut off because there was no more room.
        stopped: whether Ctrl-C ended it.
    """

    text: str
    terminated: bool
    scores: np.ndarray | None = None
    full: bool = False
    stopped: bool = False


ReplyFn = Callable[[Text, int, Callable[[str], None]], Reply]
"""(what was said, the number of this answer, where its text goes piece by piece) -> the answer."""


def make_reply(config: ChatConfig, policy: Start, scorer: Start | None, encoder: Encoder, mesh: Mesh) -> ReplyFn:
    """Builds the function that answers.

    A single answer is shown while it is drawn, the best of several when all are there. Ctrl-C ends a single answer
    where it is; of several nothing is left. The function raises TooLong where there is no room for an answer, and
    RowError where the chat template refuses what was said.

    Args:
        config: how answers are drawn.
        policy: the policy.
        scorer: the reward model, or None.
        encoder: of the policy's tokenizer.
        mesh: where prompts go.
    """
    answer = make_answer(policy, config.sampling, compute=config.compute, answers=config.answers)
    score = None if scorer is None else batch_scorer(scorer, compute=config.compute)
    positions = min(start.config.max_positions for start in (policy, scorer) if start is not None)
    decode, key = answer_decoder(policy.tokenizer), jax.random.key(config.sampling.seed)
    rows = axis_size(BATCH_AXES, mesh.shape)  # the prompt, and padding that makes rows divide over devices

    def reply(said: Text, number: int, show: Callable[[str], None]) -> Reply:
        (encoded,) = encode(encoder, [split_prompt(encoder, said)])
        room = min(config.sampling.max_new_tokens, positions - len(encoded.ids))
        if room < 1:
            raise TooLong(f"the conversation has {len(encoded.ids)} tokens, and the model {positions} positions")
        prompts = place_batch(_prompt(encoded.ids, rows, number), mesh)
        shown = _Shown(decode, config, show)
        watch = shown.watch if config.answers == 1 else None
        try:
            drawn = answer(prompts, [{}], key, longest=room, watch=watch)
            scores = None if score is None else score(drawn)[0]
        except KeyboardInterrupt:
            return Reply(text=shown.text, terminated=False, stopped=True)
        if scores is not None:
            refuse_nan({"reward_model": scores})
        best = 0 if scores is None else int(np.argmax(scores))
        text, terminated = drawn.completions[0][best], bool(drawn.terminated[0, best])
        text = text if config.plain else text.strip()
        shown.rest(text)
        return Reply(text, terminated, scores, full=not terminated and room < config.sampling.max_new_tokens)

    return reply


class _Shown:
    """The part of an answer that has appeared: whole characters, and nothing that may begin a stop string."""

    def __init__(self, decode: Decode, config: ChatConfig, show: Callable[[str], None]):
        self.text = ""
        self._growing, self._stop, self._show = GrowingText(decode), config.sampling.stop, show
        self._strips = not config.plain  # a turn is told apart by its template, not by white space

    def watch(self, row: int, tokens: np.ndarray, ended: bool) -> None:
        """Shows what is new, see `sampling.Watch`; there is one answer."""
        self._growing.settle(tokens)
        text = before_beginning(self._stop, before_stop(self._stop, self._growing.text))
        self._add(text.lstrip() if self._strips else text)

    def rest(self, text: str) -> None:
        """Shows what is left of the whole answer."""
        self._add(text)

    def _add(self, text: str) -> None:
        new = text[len(self.text) :]
        self.text += new
        if new:
            self._show(new)


def _prompt(ids: np.ndarray, rows: int, number: int) -> PromptBatch:
    """A batch that begins with a prompt; its number is what its draws are keyed by."""
    width = _NARROWEST
    while width < len(ids):
        width *= 2
    return pad_prompts([ids.tolist(), *[[]] * (rows - 1)], width=width, row_ids=[number] * rows)
