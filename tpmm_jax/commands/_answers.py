"""One answer, streamed to a terminal or a pipe, that Ctrl-C can cut short."""

import argparse
import contextlib
import io
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

from tpmm_jax.errors import BadInput
from tpmm_jax.facade import BATCH_SIZE, codec_of, encode, token_stream
from tpmm_jax.log.escapes import printable
from tpmm_jax.sampling import SamplingConfig, text_pieces
from tpmm_jax.weights.source import Model


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How answers are drawn.

    Attributes:
      sampling: temperature, top-p, top-k, most new tokens.
      seed: of the random keys.
      chat: whether prompts are written with the chat template.
      system: a system message before every conversation.
      num_samples: answers of each prompt.
      batch_size: prompts that are answered together, where they come from a file.
    """

    sampling: SamplingConfig
    seed: int
    chat: bool
    system: str | None = None
    num_samples: int = 1
    batch_size: int = BATCH_SIZE

    def conversation(self, prompt: Any) -> Any:
        """Returns the prompt with the system message before it.

        Raises:
          BadInput: there is one already.
        """
        if self.system is None:
            return prompt
        system = {"role": "system", "content": self.system}
        if isinstance(prompt, str):
            return [system, {"role": "user", "content": prompt}]
        if prompt[0].get("role") == "system":
            raise BadInput("a prompt has its own system message; leave --system out")
        return [system, *prompt]


@dataclass(frozen=True)
class Answer:
    """What was said, and whether it came to an end by itself."""

    text: str
    tokens: int
    interrupted: bool
    cut: bool


class Interrupt:
    """Notes the first Ctrl-C; the second is a KeyboardInterrupt as usual.

    The loop stops between two tokens: an exception raised anywhere, as in the middle
    of a compilation, could leave half of something behind.
    """

    def __init__(self) -> None:
        self.raised = False

    @contextlib.contextmanager
    def watching(self) -> Iterator["Interrupt"]:
        """Catches Ctrl-C while an answer is drawn."""
        self.raised = False
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = signal.signal(signal.SIGINT, self._note)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.raised:
            raise KeyboardInterrupt
        self.raised = True


def stream_answer(
    model: Model,
    prompt: Any,
    settings: Settings,
    out: io.TextIOBase,
    *,
    number: int = 0,
    sample: int = 0,
) -> Answer:
    """Writes an answer to ``out`` as it comes, a line break at its end.

    Raises:
      BadInput: the prompt cannot be encoded, or is too long.
    """
    interrupt = Interrupt()
    drawn: list[int] = []

    def tokens(ids: list[int]) -> Iterator[int]:
        for token in token_stream(
            model,
            ids,
            settings.sampling,
            seed=settings.seed,
            number=number,
            sample=sample,
        ):
            drawn.append(token)
            yield token
            if interrupt.raised:
                return

    said = []
    # From here on: to write the first prompt with a template takes seconds.
    with interrupt.watching():
        codec = codec_of(model, chat=settings.chat)
        (ids,) = encode(codec, [settings.conversation(prompt)])
        for piece in text_pieces(codec, ids, tokens(ids)):
            said.append(piece)
            out.write(escape_controls(piece, out))
            out.flush()
    out.write("\n")
    out.flush()
    full = len(drawn) == settings.sampling.max_new_tokens
    return Answer("".join(said), len(drawn), interrupt.raised, full)


def escape_controls(text: str, out: io.TextIOBase) -> str:
    """Returns the text for ``out``: on a terminal, control codes as escapes."""
    return printable(text) if out.isatty() else text


def standard_output() -> io.TextIOBase:
    """Returns stdout, made to show "?" for a letter that its encoding lacks."""
    encoding = (sys.stdout.encoding or "utf-8").lower().replace("-", "")
    if not encoding.startswith("utf") and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    return cast(io.TextIOBase, sys.stdout)


def sampling_of(args: argparse.Namespace, max_new_tokens: int) -> SamplingConfig:
    """Returns what the options of ``add_sampling`` say of the draws, not checked."""
    return SamplingConfig(
        max_new_tokens=max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
    )
