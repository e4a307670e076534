"""Talking to a model on a terminal: a conversation, or one text continued at a time."""

import contextlib
import io
import sys
from typing import Any

from tpmm_jax.commands._answers import Answer, Settings, stream_answer
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.weights.source import Model

# A line that says so alone ends a chat as well.
ENDS = ("/quit", "/exit", "quit", "exit")
COMMANDS = {
    "/reset": "begin a new conversation",
    "/quit": "end (so do quit, exit and Ctrl-D)",
    "/help": "this list",
}
KEYS = "Ctrl-C interrupts an answer"


class Chat:
    """The turns of one terminal session.

    Args:
      console: for remarks; the answers go to ``out``.
    """

    def __init__(
        self, model: Model, settings: Settings, console: RunConsole, out: io.TextIOBase
    ) -> None:
        self.model, self.settings = model, settings
        self.console, self.out = console, out
        self.turns: list[dict[str, str]] = []
        # Never used twice, so that a repeated question is a new draw.
        self.answers = 0

    def run(self) -> None:
        """Reads lines until the end of input or /quit."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history of input())
        what = "message" if self.settings.chat else "text to continue"
        self.console.note(f"Type a {what}. /reset, /quit, /help; {KEYS}.")
        while True:
            try:
                line = input("> ")
            except EOFError:
                self.out.write("\n")
                return
            except KeyboardInterrupt:
                self.out.write("\n")
                self.console.note("to end: /quit or Ctrl-D")
                continue
            if not line.strip():
                continue
            # A space before it sends it to the model.
            if line.rstrip() in ENDS:
                return
            if line.startswith("/"):
                self._command(line.strip())
                continue
            self._answer(line)

    def _command(self, line: str) -> None:
        """Obeys a command."""
        if line == "/reset":
            self.turns = []
            self.console.note("a new conversation")
        elif line == "/help":
            for name, text in COMMANDS.items():
                self.console.note(f"{name:<8} {text}")
            self.console.note(
                f"{KEYS}. A space before a / or a quit sends it to the model."
            )
        else:
            self.console.note(
                f"no command {line.split()[0]}; there are {', '.join(COMMANDS)}. To "
                "send a text that begins with /, put a space before it"
            )

    def _answer(self, line: str) -> None:
        prompt: Any = line
        if self.settings.chat:
            prompt = [*self.turns, {"role": "user", "content": line}]
        try:
            answer = stream_answer(
                self.model, prompt, self.settings, self.out, number=self.answers
            )
        except BadInput as error:
            advice = "; /reset begins a new conversation" if self.turns else ""
            self.console.error(f"{error}{advice}")
            return
        self.answers += 1
        say_end(answer, self.console)
        self.out.write("\n")
        if not self.settings.chat:
            return
        if answer.text.strip():
            # An interrupted answer stays, as far as it was seen.
            self.turns = [*prompt, {"role": "assistant", "content": answer.text}]
        else:
            self.console.note("(an empty answer; this turn is left out)")


def say_end(answer: Answer, console: RunConsole) -> None:
    """Says why an answer ended, where that was not its own end."""
    if answer.interrupted:
        console.note(f"(interrupted after {answer.tokens} tokens)")
    elif answer.cut:
        console.note(f"(cut at {answer.tokens} tokens: --max-new-tokens)")


def is_terminal() -> bool:
    """Whether a person types the input."""
    return sys.stdin is not None and sys.stdin.isatty()
