"""Score responses with a reward model that `alignkit reward` trained, in the template it was trained with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alignkit.choices import TrainOn
from alignkit.config import DataConfig
from alignkit.data.batches.batching import IGNORED
from alignkit.data.rows.preferences import PAIRS
from alignkit.data.rows.row_kind import UNTRAINED, RowKind
from alignkit.data.sets.items import read_sets
from alignkit.data.sets.ledger import Ledger
from alignkit.data.sets.pairs import check_pair_data, load_pairs
from alignkit.data.sets.section import check_data
from alignkit.data.sets.sft import load_sft
from alignkit.errors import ConfigError, DataError
from alignkit.evaluate.arguments import check_new_file, check_section
from alignkit.evaluate.card import report_card
from alignkit.evaluate.kept_columns import with_kept_columns
from alignkit.evaluate.progress import progress_bar
from alignkit.jobs import ScoreJob
from alignkit.models.load import computing_device, longest_row
from alignkit.models.memory import explain_out_of_memory
from alignkit.models.skeleton import skeleton
from alignkit.rewards.reward_run import RewardRun
from alignkit.runs.console import SafeConsole
from alignkit.runs.log import ASIDE, run_log
from alignkit.runs.output import outputs, writing
from alignkit.runs.template import unused_forms
from alignkit.terminal import plain_number, print_json_lines


def run(job: ScoreJob, *, pairs: bool, out: Path | None) -> None:
    """Score every row of `data.path`, to standard output or to a file of JSON lines.

    Args:
        job: `model.name` is the reward run.
        pairs: the rows are chosen/rejected pairs: each line has `source`, `chosen_score`, `rejected_score`, `margin`.
            Else they hold a prompt and a response, and each line is the row with its `score` (null, with a `reason`,
            where it could not be scored).
        out: a new file; None prints.

    Raises:
        AlignkitError: the user's mistake; nothing was written.
    """
    with outputs(out=out):
        with run_log(ASIDE), explain_out_of_memory("lower batch_size or data.max_length"):
            _check(job, pairs, out)
            lines, ledger, summary = (_pairs if pairs else _rows)(job, RewardRun(job.model, job.template))
        if out is None:
            print_json_lines(lines)
        else:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            with writing(out) as aside:
                aside.write_text(text, encoding="utf-8")
        console = SafeConsole(stderr=True)
        where = [f"{len(lines):,} scored rows in {out}"] if out else []
        for line in [*([ledger.table()] if len(ledger.rows) > _num_kept(ledger) else []), *summary, *where]:
            console.print(line, markup=False, highlight=False)


def _check(job: ScoreJob, pairs: bool, out: Path | None) -> None:
    problems = (check_pair_data if pairs else check_data)(job.data)
    if job.data.eval_path is not None or job.data.eval_fraction:
        problems.append("data.eval_path and data.eval_fraction have no effect: every row is scored")
    if job.data.streaming and not pairs:
        problems.append("data.streaming=true: rows are not read as training goes; leave it out")
    problems += check_new_file(out) + check_section(job.model, wants_reward=True)
    problems += unused_forms([job.model.name], job.data)
    if problems:
        raise ConfigError(*problems)


def _pairs(job: ScoreJob, reward: RewardRun) -> tuple[list[dict[str, Any]], Ledger, list[str]]:
    longest = longest_row(job.data.max_length, skeleton(job.model).config)
    section = _section(job, reward, PAIRS)
    data = load_pairs(section, reward.template, reward.tokenizer, max_length=longest, seed=job.seed, use_margin=False)
    rows = data.train.dataset
    sides = [
        [prompt + response for prompt, response in zip(rows["prompt_ids"], rows[side], strict=True)]
        for side in ("chosen_ids", "rejected_ids")
    ]
    scores = _scores(job, reward, sides[0] + sides[1])
    chosen, rejected = scores[: len(rows)], scores[len(rows) :]
    _, num_chosen, num_rejected = data.train.side_lengths()
    card = report_card(chosen, rejected, num_chosen, num_rejected)
    lines = [
        {"source": source, "chosen_score": better, "rejected_score": worse, "margin": better - worse}
        for source, better, worse in zip(data.train.sources, chosen, rejected, strict=True)
    ]
    shares = {name: card[name] for name in ("accuracy", "longer_wins")}
    summary = [
        f"{n.replace('_', ' '):12} {s['value']:.1%} ({s['low']:.1%} to {s['high']:.1%})" for n, s in shares.items()
    ]
    summary.append(f"{'margin':12} {plain_number(card['margin']['mean'])} ± {plain_number(card['margin']['std'])}")
    return lines, data.ledger, [f"{card['pairs']:,} pairs", *summary]


def _rows(job: ScoreJob, reward: RewardRun) -> tuple[list[dict[str, Any]], Ledger, list[str]]:
    longest = longest_row(job.data.max_length, skeleton(job.model).config)
    section = dataclasses.replace(_section(job, reward, UNTRAINED), train_on=TrainOn.last_turn)
    data = load_sft(section, reward.template, reward.tokenizer, max_length=longest, seed=job.seed, kind=UNTRAINED)
    found = list(_up_to_the_end(data.train.dataset))
    scores = dict(zip(data.train.sources, _scores(job, reward, found), strict=True))
    reasons = {row.source: row.reason for row in data.ledger.rows}
    lines = []
    for block in read_sets(section, UNTRAINED, seed=job.seed)["train"]:
        for read in block.rows:
            row = read.row if isinstance(read.row, dict) else {"row": read.row}
            if "score" in row:
                raise DataError(f"{read.source}: the row has a 'score' already: rename it")
            scored = {"score": scores.get(read.source)}
            lines.append(row | scored | ({} if read.source in scores else {"reason": reasons[read.source]}))
    mean = sum(scores.values()) / len(scores)
    return lines, data.ledger, [f"{len(scores):,} rows, mean score {plain_number(mean)}"]


def _section(job: ScoreJob, reward: RewardRun, kind: RowKind[Any]) -> DataConfig:
    """The section with tools, reasoning and columns as the run was trained to read them."""
    data = dataclasses.replace(job.data, tools=reward.rules.tools, reasoning=reward.rules.reasoning)
    return with_kept_columns(data, [job.model.name], kind)


def _up_to_the_end(rows: Any) -> Iterator[list[int]]:
    """Each row up to the last token of its response: that is where a score is read."""
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        yield ids[: max(i for i, label in enumerate(labels, start=1) if label != IGNORED)]


def _scores(job: ScoreJob, reward: RewardRun, rows: Sequence[Sequence[int]]) -> list[float]:
    reward.load(computing_device())
    with progress_bar("scoring", len(rows)) as on_progress:
        return reward.scores(rows, batch_size=job.batch_size, on_progress=on_progress)


def _num_kept(ledger: Ledger) -> int:
    return sum(row.fate == "kept" for row in ledger.rows)
