"""Measure models, each figure with its error: held-out loss, responses and their rewards, distance from a reference."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from alignkit.config import DataConfig, ModelConfig
from alignkit.data.rows.preferences import PAIRS
from alignkit.data.rows.prompts import prompt_kind
from alignkit.data.rows.responses import RESPONSES
from alignkit.data.rows.row_kind import RowKind
from alignkit.data.sets.pairs import PairSet, check_pair_data
from alignkit.data.sets.prompts import check_prompts
from alignkit.data.sets.section import check_data
from alignkit.engine.check import check_engine
from alignkit.errors import ConfigError, DataError
from alignkit.evaluate.arguments import check_models, check_new_file, check_section
from alignkit.evaluate.engine import answering
from alignkit.evaluate.figures import Figures, difference_lines, equal_lines, figures_table, precision_lines
from alignkit.evaluate.held_out import HeldOutData, load_held_out
from alignkit.evaluate.kept_columns import with_kept_columns
from alignkit.evaluate.measure import (
    by_prompt,
    describe_responses,
    encode_pairs,
    implicit_reward_card,
    measure_kl,
    measure_losses,
    repeated,
    sample_responses,
)
from alignkit.evaluate.report import write_report
from alignkit.evaluate.rewards import check_reward, load_reward, read_replies, score_answers, warn_of_reward
from alignkit.evaluate.served_model import ServedModel, check_same_tokens
from alignkit.evaluate.statistics import expectation, mean_interval
from alignkit.evaluate.trained import held_out_groups, split_seed
from alignkit.jobs import EvaluateJob
from alignkit.models.memory import explain_out_of_memory
from alignkit.runs.console import SafeConsole
from alignkit.runs.log import ASIDE, run_log
from alignkit.runs.output import outputs
from alignkit.runs.template import unused_forms
from alignkit.sampling.settings import check_sampling, plain

logger = logging.getLogger(__name__)


def run(
    job: EvaluateJob,
    *,
    runs: Sequence[str],
    reward: str | None,
    reference: str | None,
    pairs: str | None,
    out: Path | None,
    as_prompts: bool = False,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Measure every model on the same rows and prompts; print a table, and write JSON to `out`.

    The rows are those that the section `data` holds out; all of `data.path` if it holds none out. With `as_prompts`, or
    `data.prompt_length` or `data.format=prompt`, they are prompts, as PPO has them. `record` has the settings as they
    were given, interpolations unresolved: as such they are written to `out`.

    Raises:
        ConfigError, DataError, ModelError, RewardError: the user's mistake.
    """
    with outputs(out=out):
        with run_log(ASIDE), explain_out_of_memory("lower batch_size or sampling.max_new_tokens"):
            as_prompts = reads_prompts(job, as_prompts)
            check(job, runs, reward, reference, pairs, out, as_prompts=as_prompts)
            kind: RowKind[Any] = prompt_kind(job.data.prompt_length) if as_prompts else RESPONSES
            data = with_kept_columns(replace(job.data, eval_groups=held_out_groups(job.data, runs)), runs, kind)
            seed = split_seed(job.data, runs, job.seed)
            forms = (data.tools, data.reasoning)
            models = [ServedModel.of(replace(job.model, name=name), job.template, forms=forms) for name in runs]
            longest, num_prompts = job.sampling.max_new_tokens, job.num_prompts
            held_out = [
                load_held_out(
                    data, model, as_prompts=as_prompts, max_new_tokens=longest, num_prompts=num_prompts, seed=seed
                )
                for model in models
            ]
            for model, rows in zip(models, held_out, strict=True):
                model.check_lengths(rows.prompts, rows.prompt_ids, job.sampling)
            preferences = _preferences(job, models, [*runs, *filter(None, [reference])], pairs)
            loaded_reference = _load_reference(job, models, held_out, reference)
            figures = [
                _measure(job, model, data, loaded_reference, ranked, is_rewarded=reward is not None)
                for model, data, ranked in zip(models, held_out, preferences, strict=True)
            ]
            if reward is not None:
                _score_responses(job, models, held_out, figures, reward)
        _show(job, held_out[0], figures)
        if out is not None:
            write_report(out, settings=record or asdict(job), runs=[one.as_json() for one in figures])


def _preferences(
    job: EvaluateJob, models: Sequence[ServedModel], names: Sequence[str], path: str | None
) -> list[PairSet | None]:
    """The pairs of `--pairs`, as each model reads them, with columns as in the training of any of `names`."""
    if path is None:
        return [None] * len(models)
    section = replace(_pairs_section(job, path), eval_fraction=0.0)
    section = with_kept_columns(section, names, PAIRS, given=job.data.columns)
    try:
        return [encode_pairs(model, section, seed=job.seed) for model in models]
    except DataError as error:
        raise DataError(*(re.sub(r"^data\.(path|format)", "--pairs", line) for line in error.problems)) from None


def _load_reference(
    job: EvaluateJob, models: Sequence[ServedModel], held_out: Sequence[HeldOutData], name: str | None
) -> ServedModel | None:
    """Load the reference model; its tokens must be those of every model."""
    if name is None:
        return None
    forms = (job.data.tools, job.data.reasoning)
    reference = ServedModel.of(ModelConfig(name, dtype=job.model.dtype), job.template, forms=forms)
    for model, data in zip(models, held_out, strict=True):
        check_same_tokens([model, reference], [data.prompt_ids, reference.encode(data.prompts)], "--reference")
    return reference.load(seed=job.seed)


def _measure(
    job: EvaluateJob,
    model: ServedModel,
    data: HeldOutData,
    reference: ServedModel | None,
    pairs: PairSet | None,
    *,
    is_rewarded: bool,
) -> Figures:
    batch_size, num_samples = job.batch_size, job.num_samples
    model.load(seed=job.seed)
    figures = Figures(model.name)
    if data.rows:
        losses = measure_losses(model, data, batch_size=batch_size)
        figures.losses = dict(zip(data.sources, losses, strict=True))
        figures.loss = mean_interval([loss for loss, _ in losses], weights_N=[count for _, count in losses])
    if data.prompts:
        with answering(job.engine, model, data.prompt_ids, job.sampling, seed=job.seed) as engine:
            figures.name += f" ({engine})" if engine else ""
            sampled = sample_responses(
                model, data, job.sampling, num_samples=num_samples, seed=job.seed, batch_size=batch_size
            )
            figures.responses = describe_responses(model, sampled, job.sampling, num_samples=num_samples)
            if is_rewarded:
                asked, rows = repeated(data.prompts, num_samples), repeated(data.prompt_ids, num_samples)
                figures.replies = read_replies(model, asked, rows, sampled, job.sampling)
            if reference is not None:
                # The divergence is an expectation under the model's own distribution, however it is sampled.
                if plain(job.sampling) != job.sampling:
                    logger.warning("KL: measured on further responses, drawn at temperature 1 from all tokens")
                    sampled = sample_responses(
                        model, data, plain(job.sampling), num_samples=num_samples, seed=job.seed, batch_size=batch_size
                    )
                figures.kl = measure_kl(model, reference, data, sampled, num_samples=num_samples, batch_size=batch_size)
    if pairs is not None:
        assert reference is not None
        figures.preference = implicit_reward_card(model, reference, pairs, beta=job.beta, batch_size=batch_size)
    model.unload()
    return figures


def _score_responses(
    job: EvaluateJob,
    models: Sequence[ServedModel],
    held_out: Sequence[HeldOutData],
    figures: Sequence[Figures],
    name: str,
) -> None:
    reward = load_reward(name, job.model, batch_size=job.batch_size)
    for model, data, one in zip(models, held_out, figures, strict=True):
        assert one.responses is not None
        warn_of_reward(reward, model, one.responses.finish_reasons, job.sampling)
        scores = score_answers(reward, repeated(data.prompts, job.num_samples), one.replies)
        one.scores = by_prompt(scores, job.num_samples)
        one.reward = expectation(one.scores)
    for line in reward.truncations():
        logger.warning("%s", line)


def _show(job: EvaluateJob, data: HeldOutData, figures: Sequence[Figures]) -> None:
    rows = f"{len(data.rows):,} held-out rows, " if data.rows else ""
    lines = [f"{rows}{len(data.prompts):,} prompts × {job.num_samples} samples"]
    if any(row.fate == "dropped" for row in data.ledger.rows):
        lines.insert(0, data.ledger.table())
    lines += ["", figures_table(figures), *equal_lines(figures), *difference_lines(figures)]
    lines += precision_lines(figures, job.precision) if job.precision is not None else []
    console = SafeConsole()
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _pairs_section(job: EvaluateJob, path: str) -> DataConfig:
    return replace(job.data, path=path, eval_path=None, format="auto", columns={}, streaming=False)


def reads_prompts(job: EvaluateJob, as_prompts: bool) -> bool:
    """Tell whether the rows are prompts, as PPO has them: where it is asked for, or the section `data` says so."""
    return as_prompts or job.data.prompt_length.max is not None or job.data.format == "prompt"


def check_rows(job: EvaluateJob, *, as_prompts: bool) -> list[str]:
    """List what is wrong with the rows and how they are answered, one line each, whatever the models are."""
    problems = check_sampling(job.sampling) + check_engine(job.engine)
    problems += check_prompts(job.data) if as_prompts else check_data(job.data, RESPONSES)
    if as_prompts and not job.num_prompts:
        problems.append("num_prompts=0 leaves nothing to measure: the rows are prompts, without responses")
    return problems


def check(
    job: EvaluateJob,
    runs: Sequence[str],
    reward: str | None,
    reference: str | None,
    pairs: str | None,
    out: Path | None,
    *,
    as_prompts: bool,
) -> None:
    """Find what is wrong before a row or a weight is read.

    Raises:
        ConfigError: every problem found, together.
    """
    problems = check_rows(job, as_prompts=as_prompts)
    problems += check_models(runs, job.model, distinct=True) + check_new_file(out) + unused_forms(runs, job.data)
    if reference:
        problems += check_section(replace(job.model, name=reference))
    if reward is not None:
        problems += check_reward(reward)
        if not job.num_prompts:
            problems.append("--reward has no effect with num_prompts=0: there are no responses to score")
    if job.precision is not None and (reward is None or job.num_samples < 2):
        problems.append("precision needs a reward: give --reward, and num_samples of 2 or more")
    if pairs is not None:
        pair_problems = check_pair_data(_pairs_section(job, pairs), scores_tokens=True)
        problems += [line.replace("data.path", "--pairs", 1) for line in pair_problems]
        if reference is None:
            problems.append("--pairs measures an implicit reward, which needs a reference model: give --reference")
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
