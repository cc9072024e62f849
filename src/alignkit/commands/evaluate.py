"""Models in numbers, each with its error: held-out loss, what responses are like and worth, how far a model moved."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from alignkit.commands.compare import check_same_tokens, response_ids
from alignkit.config import EvaluateJob, ModelConfig
from alignkit.data.rows.conversation import Conversation
from alignkit.data.sets.dataset import check_data, load_sft
from alignkit.data.sets.ledger import Ledger
from alignkit.data.sets.pairs import check_pair_data, load_pairs
from alignkit.errors import AlignkitError, ConfigError
from alignkit.evaluate import rewards
from alignkit.evaluate.card import report_card
from alignkit.evaluate.figures import Figures, Responses, difference_lines, distinct, table
from alignkit.evaluate.likelihood import Row, token_kls, token_logprobs
from alignkit.evaluate.prompts import Prompts
from alignkit.evaluate.served_model import ServedModel, progress_bar, sample_keys
from alignkit.evaluate.statistics import bootstrap_mean, expectation, suggestion
from alignkit.models.load import check_model, longest_row
from alignkit.models.skeleton import skeleton
from alignkit.runs.log import run_log
from alignkit.sampling.settings import check_sampling

logger = logging.getLogger(__name__)


@dataclass
class HeldOutData:
    """What a model is measured on, encoded for it.

    Attributes:
        sources: of the rows, `file:N`.
        rows: with the labels that training has.
        prompts: those that are answered, no two the same, each with a place.
        prompt_ids: their tokens.
        ledger: what became of every row.
    """

    sources: list[str]
    rows: list[Row]
    prompts: Prompts
    prompt_ids: list[list[int]]
    ledger: Ledger = field(repr=False)


def run(
    job: EvaluateJob,
    *,
    runs: Sequence[str],
    reward: str | None,
    reference: str | None,
    pairs: str | None,
    out: Path | None,
) -> None:
    """Measure every model on the same rows and prompts; a table in the terminal, and JSON where asked for.

    Rows are those the section `data` holds out; where it holds none out, all of `data.path`.

    Raises:
        ConfigError, DataError, ModelError, RewardError: the user's mistake.
    """
    with run_log():
        _check(job, runs, reward, reference, pairs, out)
        policies = [ServedModel.of(replace(job.model, name=name), job.template) for name in runs]
        held_out = [_held_out(job, policy) for policy in policies]
        for policy, found in zip(policies, held_out, strict=True):
            policy.check_lengths(found.prompts, found.prompt_ids, job.sampling)
        reference_model = _load_reference(job, policies, held_out, reference)
        figures = [
            _measured(job, policy, found, reference_model, pairs)
            for policy, found in zip(policies, held_out, strict=True)
        ]
        if reward is not None:
            _reward(job, policies, held_out, figures, reward)
    console = Console(soft_wrap=True)
    num_rows, num_prompts = len(held_out[0].rows), len(held_out[0].prompts)
    lines = [f"{num_rows:,} held-out rows, {num_prompts:,} prompts × {job.num_samples} samples"]
    if any(row.fate == "dropped" for row in held_out[0].ledger.rows):
        lines.insert(0, held_out[0].ledger.table())
    lines += ["", table(figures), *difference_lines(figures, seed=job.seed), *_advice(job, figures)]
    for line in lines:
        console.print(line, markup=False, highlight=False)
    if out is not None:
        write_json(out, {"settings": asdict(job), "runs": [one.as_json() for one in figures]})


def check_runs(runs: Sequence[str], model: ModelConfig, out: Path | None) -> list[str]:
    """What is wrong with the models to measure and with `--out`, one line each; empty where all is well."""
    problems = [] if runs else ["there is no model: name a run directory, a model folder or a hub id"]
    problems += [f"{name} is named twice" for name in dict.fromkeys(runs) if list(runs).count(name) > 1]
    problems += [problem for name in runs for problem in _model_problems(replace(model, name=name))]
    if out is not None and out.exists():
        problems.append(f"--out {out} exists already: name another file or remove it")
    return problems


def write_json(out: Path, content: dict[str, Any]) -> None:
    """Everything that was measured, in the file of `--out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(_plain(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    Console(stderr=True, soft_wrap=True).print(f"all of it: {out}", markup=False, highlight=False)


def _held_out(job: EvaluateJob, policy: ServedModel) -> HeldOutData:
    longest = longest_row(job.data.max_length, skeleton(policy.config).config)
    every = 10**9 if job.num_prompts else 0
    data = load_sft(job.data, policy.template, policy.tokenizer, max_length=longest, seed=job.seed, num_prompts=every)
    sets = list(data.evals.values()) or [data.train]
    rows = [
        Row(ids, labels)
        for found in sets
        for ids, labels in zip(found.dataset["input_ids"], found.dataset["labels"], strict=True)
    ]
    conversations: dict[str, Conversation] = {}
    for row in data.prompts:
        conversations.setdefault(row.prompt_key(), row.prompt())
    chosen = list(conversations.values())[: job.num_prompts]
    prompts = [(f"held-out prompt {place}", prompt) for place, prompt in enumerate(chosen, start=1)]
    sources = [source for found in sets for source in found.sources]
    return HeldOutData(sources, rows, prompts, policy.encode(prompts), data.ledger)


def _load_reference(
    job: EvaluateJob, policies: Sequence[ServedModel], held_out: Sequence[HeldOutData], name: str | None
) -> ServedModel | None:
    """The reference model, loaded; its tokens must be those of every model."""
    if name is None:
        return None
    reference = ServedModel.of(ModelConfig(name, dtype=job.model.dtype), job.template)
    for policy, found in zip(policies, held_out, strict=True):
        encoded = [found.prompt_ids, reference.encode(found.prompts)]
        check_same_tokens([policy, reference], encoded, "--reference")
    return reference.load(seed=job.seed)


def _measured(
    job: EvaluateJob, policy: ServedModel, found: HeldOutData, reference: ServedModel | None, pairs: str | None
) -> Figures:
    policy.load(seed=job.seed)
    scored = token_logprobs(policy.weights, found.rows, pad_id=policy.pad_id, batch_size=job.batch_size)
    counts = [row.num_scored for row in found.rows]
    losses = [-logprobs.double().sum().item() / count for logprobs, count in zip(scored, counts, strict=True)]
    figures = Figures(
        policy.name,
        losses=dict(zip(found.sources, zip(losses, counts, strict=True), strict=True)),
        loss=bootstrap_mean(losses, seed=job.seed, weights_N=counts),
    )
    if found.prompts:
        _responses(job, policy, found, reference, figures)
    if pairs is not None:
        assert reference is not None
        figures.preference = _preference(job, policy, reference, pairs)
    policy.unload()
    return figures


def _responses(
    job: EvaluateJob, policy: ServedModel, found: HeldOutData, reference: ServedModel | None, figures: Figures
) -> None:
    """K responses to each prompt: what they are like, and how far from the reference's distribution they lead."""
    num_samples = job.num_samples
    prompt_ids = [ids for ids in found.prompt_ids for _ in range(num_samples)]
    with progress_bar(policy.name) as progress:
        bar = progress.add_task("", total=len(prompt_ids))
        completions = policy.complete(
            prompt_ids,
            job.sampling,
            seed=job.seed,
            batch_size=job.batch_size,
            keys=sample_keys(len(found.prompts), num_samples),
            on_progress=lambda done: progress.update(bar, completed=done),
        )
    texts = [policy.text(completion, job.sampling) for completion in completions]
    figures.responses = Responses(
        texts=_by_prompt(texts, num_samples),
        finish_reasons=[done.finish_reason for done in completions],
        tokens=expectation(_by_prompt([float(done.num_tokens) for done in completions], num_samples)),
        stopped=expectation(_by_prompt([float(done.finish_reason != "length") for done in completions], num_samples)),
        distinct={n: distinct(texts, n) for n in (1, 2, 3)},
    )
    if reference is not None:
        rows = [Row.answered(ids, response_ids(done)) for ids, done in zip(prompt_ids, completions, strict=True)]
        kls = token_kls(policy.weights, reference.weights, rows, pad_id=policy.pad_id, batch_size=job.batch_size)
        figures.kl = expectation(_by_prompt([kl.double().sum().item() for kl in kls], num_samples))


def _preference(job: EvaluateJob, policy: ServedModel, reference: ServedModel, pairs: str) -> dict[str, Any]:
    """How often β (ln π(y|x) − ln π_ref(y|x)), the implicit reward (Rafailov et al. 2023), is right about a pair."""
    data = replace(job.data, path=pairs, eval_path=None, eval_fraction=0.0, format="auto", columns={}, streaming=False)
    longest = longest_row(job.data.max_length, skeleton(policy.config).config)
    found = load_pairs(data, policy.template, policy.tokenizer, max_length=longest, seed=job.seed, use_margin=False)
    dataset = found.train.dataset
    scores = []
    for side in ("chosen_ids", "rejected_ids"):
        rows = [Row.answered(ids, answer) for ids, answer in zip(dataset["prompt_ids"], dataset[side], strict=True)]
        ours, theirs = (
            token_logprobs(model.weights, rows, pad_id=model.pad_id, batch_size=job.batch_size)
            for model in (policy, reference)
        )
        gains = [(a.double() - b.double()).sum().item() for a, b in zip(ours, theirs, strict=True)]
        scores.append([job.beta * gain for gain in gains])
    _, num_chosen, num_rejected = found.train.side_lengths()
    return report_card(scores[0], scores[1], num_chosen, num_rejected)


def _reward(
    job: EvaluateJob,
    policies: Sequence[ServedModel],
    held_out: Sequence[HeldOutData],
    figures: Sequence[Figures],
    name: str,
) -> None:
    reward = rewards.load(name, job.model, batch_size=job.batch_size)
    for policy, found, one in zip(policies, held_out, figures, strict=True):
        assert one.responses is not None
        rewards.warn(reward, policy, one.responses.finish_reasons, job.sampling)
        prompts = [prompt for prompt in found.prompts for _ in range(job.num_samples)]
        scores = rewards.score_answers(reward, prompts, [text for texts in one.responses.texts for text in texts])
        one.scores = _by_prompt(scores, job.num_samples)
        one.reward = expectation(one.scores)
    for line in reward.truncations():
        logger.warning("%s", line)


def _advice(job: EvaluateJob, figures: Sequence[Figures]) -> list[str]:
    if job.precision is None:
        return []
    lines = []
    for one in figures:
        assert one.reward is not None
        sizes = suggestion(one.reward, job.precision)
        assert sizes is not None
        here = suggestion(one.reward, job.precision, most_prompts=one.reward.num_prompts)
        these = (
            f"with these {one.reward.num_prompts} prompts alone num_samples={here[1]} would do"
            if here is not None and here[0] == one.reward.num_prompts
            else f"these {one.reward.num_prompts} prompts alone cannot reach it"
            if here is None
            else "these prompts are enough"
        )
        lines.append(f"{one.name}: ± {job.precision:g} takes num_prompts={sizes[0]} num_samples={sizes[1]}; {these}")
    return ["", *lines]


def _check(
    job: EvaluateJob,
    runs: Sequence[str],
    reward: str | None,
    reference: str | None,
    pairs: str | None,
    out: Path | None,
) -> None:
    problems = check_sampling(job.sampling) + check_data(job.data) + check_runs(runs, job.model, out)
    if reference:
        problems += _model_problems(replace(job.model, name=reference))
    if reward is not None:
        problems += rewards.check(reward)
        if not job.num_prompts:
            problems.append("--reward has no effect with num_prompts=0: there are no responses to score")
    if job.precision is not None and (reward is None or job.num_samples < 2):
        problems.append("precision plans for a reward: give --reward, and num_samples of 2 or more")
    if pairs is not None:
        section = replace(job.data, path=pairs, eval_path=None, format="auto", columns={}, streaming=False)
        problems += [line.replace("data.path", "--pairs", 1) for line in check_pair_data(section)]
        if reference is None:
            problems.append("--pairs asks for an implicit reward, which is held against a model: give --reference")
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def _model_problems(model: ModelConfig) -> list[str]:
    try:
        check_model(model)
    except AlignkitError as error:
        return list(error.problems)
    return []


def _by_prompt(values: Sequence[Any], num_samples: int) -> list[list[Any]]:
    return [list(values[start : start + num_samples]) for start in range(0, len(values), num_samples)]


def _plain(value: Any) -> Any:
    """Ready for JSON, which knows no NaN."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
