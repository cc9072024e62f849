"""Answer the same prompts with several models, side by side."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.text import Text

from alignkit.choices import EngineName
from alignkit.engine.check import check_engine
from alignkit.errors import ConfigError
from alignkit.evaluate.arguments import check_models, check_new_file
from alignkit.evaluate.compare_page import write_page
from alignkit.evaluate.comparison import Answer, Column, Comparison, summary
from alignkit.evaluate.engine import answering
from alignkit.evaluate.kept_columns import kept_prompt_columns
from alignkit.evaluate.likelihood import Row, token_logprobs
from alignkit.evaluate.progress import progress_bar
from alignkit.evaluate.prompts import Prompts, check_prompts, read_prompts
from alignkit.evaluate.rewards import check_reward, load_reward, read_replies, score_answers, warn_of_reward
from alignkit.evaluate.served_model import ServedModel, check_same_tokens, response_ids
from alignkit.evaluate.statistics import win_rate
from alignkit.evaluate.table import format_table
from alignkit.jobs import CompareJob
from alignkit.models.memory import explain_out_of_memory
from alignkit.rewards.reply import Reply
from alignkit.runs.console import SafeConsole
from alignkit.runs.log import ASIDE, run_log
from alignkit.runs.output import outputs, writing
from alignkit.sampling.generate import Completion
from alignkit.sampling.settings import check_sampling
from alignkit.terminal import one_line

logger = logging.getLogger(__name__)

_SHOWN_PROMPTS, _SHOWN = 3, 300  # prompts and characters on the terminal; the page has all


def run(
    job: CompareJob,
    *,
    runs: Sequence[str],
    prompts: Sequence[str],
    prompts_path: Path | None,
    reward: str | None,
    html: Path | None,
    out: Path | None,
) -> None:
    """Answer every prompt with every model; a table in the terminal, a page, and JSON where asked for.

    Raises:
        ConfigError, DataError, ModelError, RewardError: the user's mistake.
    """
    with outputs(html=html, out=out):
        with run_log(ASIDE), explain_out_of_memory("lower batch_size or sampling.max_new_tokens"):
            check(job, runs, prompts, prompts_path, reward, out)
            columns = job.columns or kept_prompt_columns(prompts_path, runs, format=job.format)
            found = read_prompts(prompts, prompts_path, format=job.format, columns=columns)
            models = [replace(job.model, name=name) for name in runs]
            policies = [ServedModel.of(model, job.template, chosen=job.data) for model in models]
            encoded = [policy.encode(found) for policy in policies]
            for policy, rows in zip(policies, encoded, strict=True):
                policy.check_lengths(found, rows, job.sampling)
            if job.logprobs:
                check_same_tokens(policies, encoded, "logprobs")
            comparison = _compared(job, policies, encoded, found, reward)
        _show(comparison)
        console = SafeConsole(stderr=True)
        if html is not None:
            with writing(html) as aside:
                write_page(aside, comparison)
            console.print(f"page: {html}", markup=False, highlight=False)
        if out is not None:
            text = json.dumps(asdict(comparison), indent=1, ensure_ascii=False) + "\n"
            with writing(out) as aside:
                aside.write_text(text, encoding="utf-8")
            console.print(f"all of it: {out}", markup=False, highlight=False)


def _compared(
    job: CompareJob,
    policies: Sequence[ServedModel],
    encoded: Sequence[list[list[int]]],
    found: Prompts,
    reward: str | None,
) -> Comparison:
    comparison = Comparison([source for source, _ in found], [prompt.question() for _, prompt in found], [])
    followed: list[list[int]] = []
    replies: list[list[Reply]] = []
    for policy, rows in zip(policies, encoded, strict=True):
        if job.engine.name is EngineName.local or job.logprobs:
            policy.load(seed=job.seed)
        with answering(job.engine, policy, rows, job.sampling, seed=job.seed) as engine:
            completions = _completions(job, policy, rows)
        column = Column(
            f"{policy.name} ({engine})" if engine else policy.name,
            [_answer(policy, completion, job) for completion in completions],
        )
        if reward is not None:
            replies.append(read_replies(policy, found, rows, completions, job.sampling))
        if job.logprobs and not followed:
            followed = [response_ids(completion) for completion in completions]
            comparison.tokens = [[policy.decode([token]) for token in response] for response in followed]
        if job.logprobs:
            pairs = [Row.answered(prompt, response) for prompt, response in zip(rows, followed, strict=True)]
            scored = token_logprobs(policy.weights, pairs, pad_id=policy.pad_id, batch_size=job.batch_size)
            column.token_logprobs = [logprobs.tolist() for logprobs in scored]
        policy.unload()
        comparison.columns.append(column)
    if reward is not None:
        _reward(job, policies, found, comparison, reward, replies)
    return comparison


def _completions(job: CompareJob, policy: ServedModel, rows: Sequence[list[int]]) -> list[Completion]:
    with progress_bar(policy.name, len(rows)) as on_progress:
        return policy.complete(rows, job.sampling, seed=job.seed, batch_size=job.batch_size, on_progress=on_progress)


def _reward(
    job: CompareJob,
    policies: Sequence[ServedModel],
    found: Prompts,
    comparison: Comparison,
    name: str,
    replies: Sequence[Sequence[Reply]],
) -> None:
    reward = load_reward(name, job.model, batch_size=job.batch_size)
    scores = []
    for policy, column, said in zip(policies, comparison.columns, replies, strict=True):
        warn_of_reward(reward, policy, [answer.finish_reason for answer in column.answers], job.sampling)
        scores.append(score_answers(reward, found, said))
        for answer, score in zip(column.answers, scores[-1], strict=True):
            answer.reward = score
        if len(scores) > 1:
            column.wins = win_rate(scores[-1], scores[0])
    for line in reward.truncations():
        logger.warning("%s", line)


def _answer(policy: ServedModel, completion: Completion, job: CompareJob) -> Answer:
    text = policy.text(completion, job.sampling)
    return Answer(text, completion.finish_reason, completion.num_tokens, completion.logprob)


def check(
    job: CompareJob,
    runs: Sequence[str],
    prompts: Sequence[str],
    prompts_path: Path | None,
    reward: str | None,
    out: Path | None,
) -> None:
    """Find what is wrong before a weight is read.

    Raises:
        ConfigError: every problem found, together.
    """
    problems = check_sampling(job.sampling)
    problems += check_prompts(prompts, prompts_path, format=job.format, columns=job.columns)
    if len(runs) < 2:
        problems.append("there is nothing to compare: name two models or more")
    if runs:
        problems += check_models(runs, job.model, distinct=True)
    if reward is not None:
        problems += check_reward(reward)
    problems += check_new_file(out) + check_engine(job.engine)
    if problems:
        raise ConfigError(*problems)


def _show(comparison: Comparison) -> None:
    console = SafeConsole()
    for place, prompt in enumerate(comparison.prompts[:_SHOWN_PROMPTS]):
        console.print(Text(one_line(prompt, _SHOWN), style="dim"))
        for column in comparison.columns:
            answer = column.answers[place]
            score = "" if answer.reward is None else f"  reward {answer.reward:.3f}"
            console.print(Text.assemble(f"  {column.name}: ", (one_line(answer.text, _SHOWN), "bold"), (score, "dim")))
        console.print()
    names = [column.name for column in comparison.columns]
    console.print(format_table(names, summary(comparison)), markup=False, highlight=False)
