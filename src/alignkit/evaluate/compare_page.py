"""A comparison as one self-contained page: prompts as rows, models as columns."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from alignkit.evaluate.comparison import Answer, Column, Comparison, summary

_STRONGEST = 3.0  # nats: a change by so much, or more, has the full colour


def write_page(path: Path, comparison: Comparison) -> None:
    """Write the page: no script, no font, no image from elsewhere."""
    columns = comparison.columns
    figures = summary(comparison)
    heads = "".join(f"<th>{escape(name)}</th>" for name in figures[0])
    lines = "".join(
        f"<tr><th>{escape(column.name)}</th>" + "".join(f"<td>{escape(value)}</td>" for value in row.values()) + "</tr>"
        for column, row in zip(columns, figures, strict=True)
    )
    rows = "".join(_row(comparison, index) for index in range(len(comparison.prompts)))
    names = "".join(f"<th>{escape(column.name)}</th>" for column in columns)
    title = " against ".join(column.name for column in columns)
    notes = _NOTE_REWARD * (columns[0].mean_reward is not None) + _NOTE_TOKENS * bool(comparison.tokens)
    page = _PAGE.format(title=escape(title), heads=heads, lines=lines, names=names, rows=rows, notes=notes)
    path.write_text(page, encoding="utf-8")


def _row(comparison: Comparison, index: int) -> str:
    first = comparison.columns[0]
    best = _best(comparison, index)
    cells = "".join(
        f"<td data-model='{escape(column.name, quote=True)}'>"
        f"<pre>{_differences(first.answers[index].text, column.answers[index].text, is_first=column is first)}</pre>"
        f"{_facts(column.answers[index], is_best=column in best)}"
        f"{_changes(comparison, column, index) if column is not first else ''}</td>"
        for column in comparison.columns
    )
    source, prompt = escape(comparison.sources[index]), escape(comparison.prompts[index])
    return f"<tr class='prompt'><th><small>{source}</small><pre>{prompt}</pre></th>{cells}</tr>"


def _best(comparison: Comparison, index: int) -> Sequence[Column]:
    """Return the columns with the highest reward; none if all have the same."""
    scores = [column.answers[index].reward for column in comparison.columns]
    known = [score for score in scores if score is not None]
    if not known or len(set(known)) == 1:
        return []
    return [column for column, score in zip(comparison.columns, scores, strict=True) if score == max(known)]


def _differences(first: str, text: str, *, is_first: bool) -> str:
    """Mark the words of a response that the first model's response does not have at that position."""
    if is_first or not text:
        return escape(text) or "<i>nothing</i>"
    ours, theirs = (re.findall(r"\s+|\w+|[^\w\s]", part) for part in (text, first))
    marked = []
    for kind, _, _, start, stop in difflib.SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
        words = escape("".join(ours[start:stop]))
        marked.append(words if kind == "equal" or not words.strip() else f"<mark>{words}</mark>")
    return "".join(marked)


def _facts(answer: Answer, *, is_best: bool) -> str:
    reason = {"stop": "ended", "stop_string": "ended by a stop string", "length": "cut off"}[answer.finish_reason]
    facts = [f"{answer.num_tokens} tokens", reason]
    if answer.reward is not None:
        score = f"reward {answer.reward:.3f}"
        facts.append(f"<b>{score} ▲</b>" if is_best else score)
    return f"<p class='facts'>{' · '.join(facts)}</p>"


def _changes(comparison: Comparison, column: Column, index: int) -> str:
    """Color each token of the first model's response by how its log-probability changes from there to this model."""
    if not comparison.tokens:
        return ""
    was, now = comparison.columns[0].token_logprobs[index], column.token_logprobs[index]
    spans = []
    for token, before, after in zip(comparison.tokens[index], was, now, strict=True):
        change = after - before
        share = 0.6 * min(abs(change) / _STRONGEST, 1.0)  # text stays readable on it
        colour = f"rgb(var(--{'up' if change > 0 else 'down'}) / {share:.2f})"
        shown = escape(token).replace("\n", "⏎\n")
        spans.append(f"<span style='background:{colour}' title='{before:.2f} → {after:.2f}'>{shown}</span>")
    total = sum(now) - sum(was)
    return f"<p class='facts'>the first response here: {total:+.2f} nats</p><pre class='tokens'>{''.join(spans)}</pre>"


_NOTE_REWARD = "<p>▲ has the highest reward of its row. A win rate counts a tie as half.</p>"
_NOTE_TOKENS = (
    "<p>Below an answer: the first model's response, token by token; "
    "<span style='background:rgb(var(--up) / .6)'>likelier</span> or "
    "<span style='background:rgb(var(--down) / .6)'>less likely</span> for this model than for the first.</p>"
)
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --seen: #b7ebc0; --ink: #10331a; --edge: #8884;
  --up: 60 170 90; --down: 220 90 60; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.3rem; overflow-wrap: anywhere; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.5 ui-monospace, monospace; margin: 0; }}
mark {{ background: var(--seen); color: var(--ink); border-radius: 2px; }}
table {{ border-collapse: collapse; width: 100%; }}
th {{ text-align: left; font-weight: normal; overflow-wrap: anywhere; }}
th, td {{ padding: .6rem .7rem; vertical-align: top; border-bottom: 1px solid var(--edge); }}
small, .facts {{ opacity: .75; font-size: .85rem; margin: .4rem 0 0; }}
.figures {{ overflow-x: auto; margin-bottom: 1.5rem; }} .figures table {{ width: auto; }}
.figures th, .figures td {{ white-space: nowrap; padding: .2rem 1rem .2rem 0; }}
.figures td {{ text-align: right; font-variant-numeric: tabular-nums; }}
.answers {{ table-layout: fixed; }}
.answers thead th {{ position: sticky; top: 0; background: Canvas; font-weight: bold; }}
@media (max-width: 700px) {{
  .answers, .answers tbody, .answers tr, .answers th, .answers td {{ display: block; }}
  .answers thead {{ display: none; }}
  .answers tr {{ border: 1px solid var(--edge); border-radius: 6px; margin: 1rem 0; }}
  .answers td::before {{ content: attr(data-model); font-weight: bold; overflow-wrap: anywhere; }}
  .answers tr > :last-child {{ border-bottom: 0; }}
}}
</style>
<h1>{title}</h1>
<div class="figures"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{lines}</tbody></table></div>
<p>Words that the first model does not say are <mark>marked</mark>.</p>
{notes}
<table class="answers"><thead><tr><th>prompt</th>{names}</tr></thead>
<tbody>{rows}</tbody></table>
</html>
"""
