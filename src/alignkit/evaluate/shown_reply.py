"""A reply on the terminal: its reasoning dimmed or hidden, each call on a line of its own."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from alignkit.data.encode.replies import Piece
from alignkit.terminal import printable

_CALL = "→ "


class ShownReply:
    """Prints the pieces of one reply as they come.

    Args:
        console: to print to.
        words: the style of words.
        hide_reasoning: leave the reasoning out.
    """

    def __init__(self, console: Console, *, words: str = "", hide_reasoning: bool = False) -> None:
        self._console, self._hide_reasoning = console, hide_reasoning
        self._styles = {"words": words, "reasoning": "dim", "call": "cyan"}
        self._kind, self._space, self._has_shown = "", "", False

    def add(self, piece: Piece) -> None:
        """Print a piece; white space waits for what follows, because layout stands around reasoning and calls."""
        text = f"{_CALL}{piece.text}" if piece.kind == "call" else piece.text
        if piece.kind != self._kind or piece.kind == "call":
            text = text.lstrip("\n") if self._kind else text
            self._space = "\n" if self._has_shown else ""
        self._kind = piece.kind
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown and not (piece.kind == "reasoning" and self._hide_reasoning):
            self._console.print(Text(printable(shown), style=self._styles[piece.kind]), end="")
            self._has_shown = True
