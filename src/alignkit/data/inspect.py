"""What the loss sees, read back from collated batches and shown: in the terminal, as a page, as JSON, or held to a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from alignkit.data.batching import IGNORED, Collator, rows_of
from alignkit.data.dataset import EncodedSet
from alignkit.errors import DataError

_BUCKETS = 8
_BAR_WIDTH = 40


@dataclass(frozen=True)
class Span:
    """A run of tokens of one kind: supervised or not, and either plain text or one special token."""

    text: str
    supervised: bool
    special: bool


@dataclass(frozen=True)
class RowView:
    """A row as it came back from its batch."""

    source: str
    input_ids: list[int]
    labels: list[int]

    @property
    def num_supervised(self) -> int:
        return sum(label != IGNORED for label in self.labels)

    def spans(self, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
        """The row's text, cut where supervision starts or stops and around every special token."""
        special_ids, spans, run = set(tokenizer.all_special_ids), [], []
        for at, (token, label) in enumerate(zip(self.input_ids, self.labels, strict=True)):
            run.append(token)
            supervised, special = label != IGNORED, token in special_ids
            last = at + 1 == len(self.input_ids)
            if last or special or self.input_ids[at + 1] in special_ids or (self.labels[at + 1] != IGNORED) != supervised:
                # Runs, not tokens, are decoded: a character may be made of several byte tokens.
                spans.append(Span(tokenizer.decode(run), supervised, special))
                run = []
        return spans

    def as_json(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        supervised = [token for token, label in zip(self.input_ids, self.labels, strict=True) if label != IGNORED]
        return {
            "source": self.source,
            "input_ids": self.input_ids,
            "labels": self.labels,
            "text": tokenizer.decode(self.input_ids),
            "supervised_text": tokenizer.decode(supervised),
        }


@dataclass(frozen=True)
class Report:
    """What is said beside the rows.

    Attributes:
        title: stage and run.
        table: the ledger's summary.
        facts: one line each: template, batching, shares.
        lengths: tokens of each row.
    """

    title: str
    table: str
    facts: Sequence[str]
    lengths: Sequence[int]


def read_back(rows: EncodedSet, collator: Collator, *, batch_size: int, num_rows: int | None = None) -> Iterator[RowView]:
    """The first rows, in the order of the data, out of batches made by the collator that trains."""
    sources = rows.sources
    wanted = len(sources) if num_rows is None else min(num_rows, len(sources))
    for start in range(0, wanted, batch_size):
        batch = collator([rows.dataset[i] for i in range(start, min(start + batch_size, wanted))])
        views = {i: RowView(sources[i], ids, labels) for i, ids, labels in rows_of(batch)}
        yield from (views[i] for i in sorted(views))


def show(views: Sequence[RowView], report: Report, tokenizer: PreTrainedTokenizerBase, console: Console) -> None:
    """Print rows, supervised text coloured, and the report."""
    console.print(Text(report.title, style="bold"))
    console.print(Text.assemble("the loss sees ", ("this", _style(True, False)), ", never this; ", ("⟨special⟩", "magenta")))
    for view in views:
        head = f"\n{view.source}: {len(view.input_ids)} tokens, {view.num_supervised} supervised"
        console.print(Text(head, style="bold"))
        text = Text()
        for span in view.spans(tokenizer):
            shown = f"⟨{span.text}⟩" if span.special else span.text
            text.append(shown, style=_style(span.supervised, span.special))
        console.print(text)
    console.print()
    console.print(report.table, markup=False, highlight=False)
    for fact in report.facts:
        console.print(fact, markup=False, highlight=False)
    for label, count in histogram(report.lengths):
        bar = "█" * round(_BAR_WIDTH * count / max(c for _, c in histogram(report.lengths)))
        console.print(f"{label:>13} tokens {count:>7} {bar}", markup=False, highlight=False)


def _style(supervised: bool, special: bool) -> str:
    return " ".join([*(["bold black on green"] if supervised else []), *(["magenta"] if special and not supervised else [])])


def histogram(lengths: Sequence[int]) -> list[tuple[str, int]]:
    """Up to eight equal buckets: (`low-high`, how many)."""
    if not lengths:
        return []
    width = max(1, -(-(max(lengths) + 1) // _BUCKETS))
    counts = [0] * (max(lengths) // width + 1)
    for length in lengths:
        counts[length // width] += 1
    return [(f"{b * width}-{(b + 1) * width - 1}", count) for b, count in enumerate(counts)]


def write_page(path: Path, views: Sequence[RowView], report: Report, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write one self-contained HTML page: no script, no font, no image from elsewhere."""
    rows = "".join(
        f"<section><h2>{escape(view.source)} <small>{len(view.input_ids)} tokens, {view.num_supervised} supervised"
        f"</small></h2><pre>{_marked(view, tokenizer)}</pre></section>"
        for view in views
    )
    most = max((count for _, count in histogram(report.lengths)), default=1)
    bars = "".join(
        f"<tr><td>{label}</td><td>{count}</td><td><i style='width:{100 * count / most:.1f}%'></i></td></tr>"
        for label, count in histogram(report.lengths)
    )
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in report.facts)
    path.write_text(
        _PAGE.format(title=escape(report.title), rows=rows, table=escape(report.table), facts=facts, bars=bars),
        encoding="utf-8",
    )


def _marked(view: RowView, tokenizer: PreTrainedTokenizerBase) -> str:
    pieces = []
    for span in view.spans(tokenizer):
        text = escape(f"⟨{span.text}⟩" if span.special else span.text)
        classes = " ".join([*(["special"] if span.special else [])])
        tag = "mark" if span.supervised else "span"
        pieces.append(f"<{tag} class='{classes}'>{text}</{tag}>" if classes or span.supervised else text)
    return "".join(pieces)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --seen: #b7ebc0; --ink: #10331a; --edge: #8884; --special: #a3319f; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1rem; margin: 0 0 .4rem; }} small {{ font-weight: normal; opacity: .75; }}
section {{ border: 1px solid var(--edge); border-radius: 6px; padding: .8rem 1rem; margin: 1rem 0; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.5 ui-monospace, monospace; margin: 0; }}
mark {{ background: var(--seen); color: var(--ink); border-radius: 2px; }}
.special {{ color: var(--special); font-weight: bold; }}
table {{ border-collapse: collapse; width: 100%; }} td {{ padding: .1rem .6rem .1rem 0; white-space: nowrap; }}
td:last-child {{ width: 100%; }} i {{ display: block; height: .8rem; background: #4a8f5c; border-radius: 2px; }}
</style>
<h1>{title}</h1>
<p>The loss sees <mark>this</mark> and nothing else. <span class="special">⟨Special tokens⟩</span> are shown by name.</p>
{rows}
<section><h2>Every row of the data</h2><pre>{table}</pre><ul>{facts}</ul></section>
<section><h2>Tokens in a row</h2><table>{bars}</table></section>
</html>
"""


def check_golden(path: Path, found: dict[str, dict[str, Any]]) -> int:
    """Compare rows with those saved earlier by `--json`; the number compared.

    Args:
        path: JSON lines, each with `source`, `input_ids` and `labels`; it may hold fewer rows than the data.
        found: today's rows by source.

    Raises:
        DataError: the file cannot be read, or rows are gone or differ; one line each.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        golden = {row["source"]: row for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"--assert {path}: it is no file of rows saved by --json: {error}") from error
    if not golden:
        raise DataError(f"--assert {path}: it holds no rows; make it with alignkit inspect … --json > {path}")
    problems = []
    for source, row in golden.items():
        now = found.get(source)
        if now is None:
            problems.append(f"{source}: it was kept, and is not any more")
        elif now["input_ids"] != row["input_ids"]:
            problems.append(f"{source}: its tokens changed: {_parting(row.get('text', ''), now['text'])}")
        elif now["labels"] != row["labels"]:
            was, is_ = row.get("supervised_text", ""), now["supervised_text"]
            problems.append(f"{source}: its mask changed: {_parting(was, is_)}")
    if problems:
        raise DataError(*problems)
    return len(golden)


def _parting(was: str, now: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
    start = max(0, at - 12)
    return f"was {was[start : at + 20]!r}, is {now[start : at + 20]!r}"
