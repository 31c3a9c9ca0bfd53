"""`jaxrlhf chat`: a conversation with a model in the terminal, whose answers appear while they are drawn."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator

import jax

from jaxrlhf.commands.chat_config import ChatConfig
from jaxrlhf.commands.chat_reply import Reply, ReplyFn, TooLong, make_reply
from jaxrlhf.commands.chat_turns import Conversation, Turn, obey
from jaxrlhf.data.config import DataConfig
from jaxrlhf.data.encoder import Encoder, make_encoder
from jaxrlhf.data.fields import plain_text
from jaxrlhf.data.rowlog import RowError
from jaxrlhf.data.templates import BUILT_IN
from jaxrlhf.models.attention import check_attention
from jaxrlhf.sharding.distributed import initialize
from jaxrlhf.sharding.mesh import open_mesh
from jaxrlhf.trainers.start import check_same_tokens, load_start

_SHORTEN = "/undo takes the last turn back, /reset all of them"
_UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f]")  # a model may draw what moves the cursor


def run(config: ChatConfig) -> None:
    """Talks until the input ends.

    Raises:
        ValueError: if there are several processes, conversations need a chat template and there is none, or what is
            read is bad.
    """
    initialize()
    if jax.process_count() > 1:
        raise ValueError(f"chat is for one process, and there are {jax.process_count()}; use generate")
    mesh = open_mesh(config.mesh)
    check_attention(mesh, config.compute)
    with jax.set_mesh(mesh):
        policy = load_start(config.model, mesh)
        data = DataConfig(chat_template=config.data.chat_template, add_eos=False)
        encoder = make_encoder(policy.tokenizer, data)
        _check_template(config, encoder)
        scorer = None
        if config.reward_model is not None:
            scorer = load_start(config.reward_model, mesh, what="reward_model", scalar=True)
            check_same_tokens(policy, scorer, f"reward_model={config.reward_model}")
        reply = make_reply(config, policy, scorer, encoder, mesh)
        if sys.stdin.isatty():
            _edit_lines()
            _remark(f"{config.model}; /help lists the commands")
        talk(Conversation(config.system, config.plain), reply, config.answers)


def talk(conversation: Conversation, reply: ReplyFn, answers: int = 1) -> None:
    """Reads messages and commands from the standard input, and writes answers to the standard output.

    Args:
        conversation: what was said before; grows.
        reply: see `chat_reply.make_reply`.
        answers: that it draws to each message.

    Raises:
        KeyboardInterrupt: at Ctrl-C after Ctrl-C, where nothing is drawn.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text are told, as in data
    number, interrupted = 0, False
    while True:
        try:
            line = _ask()
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            _remark("Ctrl-C again, or /quit, leaves")
            continue
        if line is None or line.strip() == "/quit":
            return
        interrupted = False
        said = obey(conversation, line)
        if said is not None:
            _remark(said)
        elif line.strip() or (conversation.plain and conversation.turns):
            _answer(conversation, line, reply, number, answers)
            number += 1


def _answer(conversation: Conversation, message: str, reply: ReplyFn, number: int, answers: int) -> None:
    """Answers a message, unless something is wrong with it."""
    if answers > 1:
        _remark(f"drawing {answers} answers")
    try:
        if message.strip():
            plain_text(message, "message")
        found = reply(conversation.until(message), number, _show)
    except RowError as error:
        _remark(str(error))
        return
    except TooLong as error:
        _remark(f"{error}, so there is no room for an answer; the message is not kept; shorten it, or: {_SHORTEN}")
        return
    if found.text:
        _show("\n")
    if found.text or not found.stopped:
        conversation.turns.append(Turn(message, found.text, found.terminated))
    for line in _remarks(found):
        _remark(line)


def _remarks(found: Reply) -> Iterator[str]:
    """What there is to say of an answer."""
    if found.scores is not None and len(found.scores) == 1:
        yield f"score {found.scores[0]:.4g}"
    elif found.scores is not None:
        scores = found.scores
        each = ", ".join(f"{score:.4g}" for score in scores)
        numbers = f"score {scores.max():.4g}, mean {scores.mean():.4g}, min {scores.min():.4g}"
        yield f"best of {len(scores)}: {numbers}; all: {each}"
    if found.stopped:
        yield "stopped" if found.text else "stopped; the message is taken back"
    elif not found.text:
        yield "an empty answer"
    if found.full:
        yield f"cut off: the conversation fills the positions of the model; {_SHORTEN}"
    elif not found.terminated and not found.stopped:
        yield "cut off at sampling.max_new_tokens"


def _check_template(config: ChatConfig, encoder: Encoder) -> None:
    if encoder.template is None and not config.plain:
        raise ValueError(
            f"model={config.model} has no chat template; set data.chat_template to {', '.join(BUILT_IN)} or the path "
            "of a jinja file, if it was trained to take turns, or plain=true to let it go on with what you type"
        )


def _ask() -> str | None:
    """A line of the standard input, None at its end."""
    try:
        return input("\n> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def _show(text: str) -> None:
    print(_UNPRINTABLE.sub("\ufffd", text), end="", flush=True)


def _remark(text: str) -> None:
    """Says what the model did not say."""
    _show(f"({text})\n")


def _edit_lines() -> None:
    """Gives `input` a line editor with a history, where Python has one."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (importing it is all it takes)
