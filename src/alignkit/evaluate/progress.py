"""A progress bar on standard error, so that standard output holds results alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from alignkit.runs.console import SafeConsole


@contextmanager
def progress_bar(label: str, total: int, *, num_done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a bar and yield the function that moves it to a number of finished items."""
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=SafeConsole(stderr=True)) as progress:
        bar = progress.add_task("", total=total, completed=num_done)
        yield lambda number: progress.update(bar, completed=number)
