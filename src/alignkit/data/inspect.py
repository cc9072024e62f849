"""What the loss sees, read back from collated batches: in the terminal, as a page, as JSON, or held to a file."""

from __future__ import annotations

import json
import sys
from collections import Counter
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
from alignkit.data.ledger import Ledger
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
            if (
                last
                or special
                or self.input_ids[at + 1] in special_ids
                or (self.labels[at + 1] != IGNORED) != supervised
            ):
                # Runs, not tokens, are decoded: a character may be made of several byte tokens.
                spans.append(Span(str(tokenizer.decode(run)), supervised, special))
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
class View:
    """What a stage would train on.

    Attributes:
        title: stage and run.
        sets: `train` and the held-out ones.
        ledger: what became of every source row.
        collator: the very one that trains.
        batch_size: rows it is given at once.
        tokenizer: of the model.
        facts: one line each: formats, template, batching.
    """

    title: str
    sets: dict[str, EncodedSet]
    ledger: Ledger
    collator: Collator
    batch_size: int
    tokenizer: PreTrainedTokenizerBase
    facts: Sequence[str]

    def rows(self, name: str = "train", num_rows: int | None = None) -> Iterator[RowView]:
        """The first rows of a set, in the order of the data, read back from batches."""
        rows = self.sets[name]
        sources = rows.sources
        wanted = len(sources) if num_rows is None else min(num_rows, len(sources))
        for start in range(0, wanted, self.batch_size):
            batch = self.collator([rows.dataset[i] for i in range(start, min(start + self.batch_size, wanted))])
            views = {i: RowView(sources[i], ids, labels) for i, ids, labels in rows_of(batch)}
            yield from (views[i] for i in sorted(views))

    @property
    def lengths(self) -> list[int]:
        """Tokens in each row of every set."""
        return [length for rows in self.sets.values() for length in rows.lengths]

    def shares(self) -> str:
        """How much of the tokens is supervised, and of the rows cut."""
        counts = Counter(row.fate for row in self.ledger.rows)
        supervised = sum(rows.num_supervised for rows in self.sets.values()) / max(sum(self.lengths), 1)
        truncated = counts["truncated"] / max(counts["truncated"] + counts["kept"], 1)
        return f"{supervised:.1%} of the tokens supervised, {truncated:.1%} of the kept rows truncated"


def inspect(view: View, *, num_rows: int, html: Path | None, as_json: bool, golden: Path | None) -> None:
    """Show a view in the terminal, and write or compare what else was asked for.

    Args:
        view: of a stage.
        num_rows: to show.
        html: also write a page here.
        as_json: print every kept row as an object a line to standard output, and nothing else.
        golden: compare with rows saved by `as_json`.

    Raises:
        DataError: rows differ from the golden ones.
    """
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_page(html, view, list(view.rows(num_rows=num_rows)))
    if as_json or golden is not None:
        every = [row.as_json(view.tokenizer) | {"set": name} for name in view.sets for row in view.rows(name)]
    if as_json:
        sys.stdout.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in every)
        return
    console = Console(soft_wrap=True)
    if golden is not None:
        num_same = check_golden(golden, {row["source"]: row for row in every})
        console.print(f"{num_same} rows are as they were in {golden}", markup=False, highlight=False)
        return
    show(view, list(view.rows(num_rows=num_rows)), console)
    if html is not None:
        console.print(f"page: {html}", markup=False, highlight=False)


def show(view: View, rows: Sequence[RowView], console: Console) -> None:
    """Print rows, supervised text coloured, and what became of all of them."""
    console.print(Text(view.title, style="bold"))
    console.print(
        Text.assemble("the loss sees ", ("this", _style(True, False)), ", never this; ", ("⟨special⟩", "magenta"))
    )
    for row in rows:
        head = f"\n{row.source}: {len(row.input_ids)} tokens, {row.num_supervised} supervised"
        console.print(Text(head, style="bold"))
        text = Text()
        for span in row.spans(view.tokenizer):
            shown = f"⟨{span.text}⟩" if span.special else span.text
            text.append(shown, style=_style(span.supervised, span.special))
        console.print(text)
    console.print()
    for line in (view.ledger.table(), *view.facts, view.shares()):
        console.print(line, markup=False, highlight=False)
    buckets = histogram(view.lengths)
    for label, count in buckets:
        bar = "█" * round(_BAR_WIDTH * count / max(count for _, count in buckets))
        console.print(f"{label:>11} tokens {count:>7} {bar}", markup=False, highlight=False)


def _style(supervised: bool, special: bool) -> str:
    return " ".join(
        [*(["bold black on green"] if supervised else []), *(["magenta"] if special and not supervised else [])]
    )


def histogram(lengths: Sequence[int]) -> list[tuple[str, int]]:
    """Up to eight equal buckets: (`low-high`, how many)."""
    if not lengths:
        return []
    width = max(1, -(-(max(lengths) + 1) // _BUCKETS))
    counts = [0] * (max(lengths) // width + 1)
    for length in lengths:
        counts[length // width] += 1
    return [(f"{b * width}-{(b + 1) * width - 1}", count) for b, count in enumerate(counts)]


def write_page(path: Path, view: View, rows: Sequence[RowView]) -> None:
    """Write one self-contained HTML page: no script, no font, no image from elsewhere."""
    sections = "".join(
        f"<section><h2>{escape(row.source)} <small>{len(row.input_ids)} tokens, {row.num_supervised} supervised"
        f"</small></h2><pre>{''.join(_marked(span) for span in row.spans(view.tokenizer))}</pre></section>"
        for row in rows
    )
    buckets = histogram(view.lengths)
    most = max((count for _, count in buckets), default=1)
    bars = "".join(
        f"<tr><td>{label}</td><td>{count}</td><td><i style='width:{100 * count / most:.1f}%'></i></td></tr>"
        for label, count in buckets
    )
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in (*view.facts, view.shares()))
    page = _PAGE.format(
        title=escape(view.title), rows=sections, table=escape(view.ledger.table()), facts=facts, bars=bars
    )
    path.write_text(page, encoding="utf-8")


def _marked(span: Span) -> str:
    text = escape(f"⟨{span.text}⟩" if span.special else span.text)
    text = f"<span class='special'>{text}</span>" if span.special else text
    return f"<mark>{text}</mark>" if span.supervised else text


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
<p>The loss sees <mark>this</mark>, nothing else. <span class="special">⟨Special tokens⟩</span> are shown by name.</p>
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
