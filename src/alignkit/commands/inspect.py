"""Show what a stage learns from, token by token: in the terminal, as a page, as JSON, or compared with a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from alignkit.data.views.view import RowView, Span, View
from alignkit.errors import DataError
from alignkit.pages.page import render
from alignkit.runs.console import SafeConsole
from alignkit.runs.output import outputs, writing
from alignkit.terminal import print_json_lines, printable

_BUCKETS = 8
_BAR_WIDTH = 40


def run(view: View, *, num_rows: int, html: Path | None, as_json: bool, golden: Path | None) -> None:
    """Show a view in the terminal, and write or compare what else was asked for.

    Args:
        view: of a stage.
        num_rows: to show.
        html: also write a page here.
        as_json: print every kept row as an object a line to standard output, and nothing else.
        golden: compare with rows saved by `as_json`.

    Raises:
        DataError: rows differ from the golden ones; or all is shown, and a run would stop at its drop budget.
    """
    if html is not None:
        with outputs(html=html):
            rows = list(view.rows(num_rows=num_rows))
            with writing(html) as aside:
                write_page(aside, view, rows)
    if as_json or golden is not None:
        every = [
            row.as_json(view.tokenizer) | row.rendered() | {"set": name}
            for name in view.sets
            for row in view.rows(name)
        ]
    if as_json:
        print_json_lines(every)
        view.check_budget()
        return
    console = SafeConsole()
    if golden is not None:
        num_same = check_golden(golden, every, view.compared)
        console.print(f"{num_same} rows are the same as in {golden}", markup=False, highlight=False)
        return
    show(view, list(view.rows(num_rows=num_rows)), console)
    if html is not None:
        console.print(f"page: {html}", markup=False, highlight=False)
    view.check_budget()


def show(view: View, rows: Sequence[RowView], console: Console) -> None:
    """Print rows, supervised text in color, and what became of every row."""
    console.print(Text(view.title, style="bold"))
    console.print(_colored(view.legend))
    cuts = view.cuts()
    for row in rows:
        console.print(Text(f"\n{row.place}: {row.size}{cuts.get(row.source, '')}", style="bold"))
        for name, spans in row.parts(view.tokenizer):
            if name:
                console.print(Text(f"{name}:", style="bold"))
            console.print(_colored(spans))
    console.print()
    for line in (view.ledger.table(), *view.figures()):
        console.print(line, markup=False, highlight=False)
    several = view.lengths()
    for name, lengths in several.items():
        if len(several) > 1:
            console.print(f"tokens in {name}", markup=False, highlight=False)
        buckets = histogram(lengths)
        for label, count in buckets:
            bar = "█" * round(_BAR_WIDTH * count / max(count for _, count in buckets))
            console.print(f"{label:>11} tokens {count:>7} {bar}".rstrip(), markup=False, highlight=False)


def _colored(spans: Sequence[Span]) -> Text:
    text = Text()
    for span in spans:
        style = "bold black on green" if span.supervised else "magenta" if span.special else ""
        text.append(printable(f"⟨{span.text}⟩" if span.special else span.text), style=style)
    return text


def histogram(lengths: Sequence[int]) -> list[tuple[str, int]]:
    """Count lengths in up to eight equal buckets, from the shortest to the longest: (`low-high`, count)."""
    if not lengths:
        return []
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // _BUCKETS)
    counts = [0] * ((high - low) // width + 1)
    for length in lengths:
        counts[(length - low) // width] += 1
    return [(f"{low + b * width}-{low + (b + 1) * width - 1}", count) for b, count in enumerate(counts)]


def write_page(path: Path, view: View, rows: Sequence[RowView]) -> None:
    """Write one self-contained HTML page: no script, no font, no image from elsewhere."""
    cuts = view.cuts()
    page = render(
        "inspect.html",
        title=view.title,
        legend=view.legend,
        rows=[
            {
                "place": row.place,
                "size": f"{row.size}{cuts.get(row.source, '')}",
                "parts": [{"name": name, "spans": spans} for name, spans in row.parts(view.tokenizer)],
            }
            for row in rows
        ],
        ledger=view.ledger.table(),
        facts=view.figures(),
        lengths=[
            {"title": f"Tokens in {name}", "buckets": _shares(lengths)} for name, lengths in view.lengths().items()
        ],
    )
    path.write_text(page, encoding="utf-8")


def _shares(lengths: Sequence[int]) -> list[tuple[str, int, float]]:
    buckets = histogram(lengths)
    most = max((count for _, count in buckets), default=1)
    return [(label, count, 100 * count / most) for label, count in buckets]


def check_golden(path: Path, found: Sequence[dict[str, Any]], compared: Sequence[tuple[str, str, str]]) -> int:
    """Compare rows with those saved earlier by `--json`; return how many were compared.

    Args:
        path: JSON lines, each with `source` and the keys that are compared; it may hold fewer rows than the data.
        found: today's rows, those of one source (parts, repeats) in their order.
        compared: a key, the key of its text, and its name in messages; the first that differs is reported.

    Raises:
        DataError: the file cannot be read, or rows are missing or differ; one line each.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        golden = _by_place([row | {key: row[key] for key, _, _ in compared} for row in rows])  # a key may be gone
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"a row has no {error}" if isinstance(error, KeyError) else error
        raise DataError(f"--assert {path}: it is no file of rows saved by --json: {why}") from error
    if not golden:
        raise DataError(f"--assert {path}: it holds no rows; make it with alignkit inspect … --json > {path}")
    problems, today = [], _by_place(found)
    for (source, number), row in golden.items():
        now = today.get((source, number))
        if now is None:
            problems.append(f"{source}: it was kept, and no longer is")
            continue
        changed = next((item for item in compared if now[item[0]] != row[item[0]]), None)
        if changed is not None:
            _, text, what = changed
            problems.append(f"{source}: its {what} changed: {_first_difference(row.get(text, ''), now[text])}")
    if problems:
        raise DataError(*problems)
    return len(golden)


def _by_place(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Name rows by their source and how many of it came before: a row in parts, or with a weight, has several."""
    seen: Counter[str] = Counter()
    named = {}
    for row in rows:
        named[row["source"], seen[row["source"]]] = row
        seen[row["source"]] += 1
    return named


def _first_difference(was: str, now: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
    start = max(0, at - 12)
    return f"was {was[start : at + 20]!r}, is {now[start : at + 20]!r}"
