"""What is measured of one model: its loss, its responses, its distance from a reference, its implicit reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from alignkit.config import DataConfig, SamplingConfig
from alignkit.data.sets.pairs import PairSet, load_pairs
from alignkit.evaluate.card import report_card
from alignkit.evaluate.figures import Responses, distinct
from alignkit.evaluate.held_out import HeldOutData
from alignkit.evaluate.likelihood import Row, token_kls, token_logprobs
from alignkit.evaluate.progress import progress_bar
from alignkit.evaluate.served_model import ServedModel, response_ids, sample_keys
from alignkit.evaluate.statistics import Expectation, expectation, rate_interval
from alignkit.models.load import longest_row
from alignkit.models.skeleton import skeleton
from alignkit.sampling.generate import Completion

T = TypeVar("T")


def measure_losses(model: ServedModel, data: HeldOutData, *, batch_size: int) -> list[tuple[float, int]]:
    """Compute the mean cross entropy of each held-out row, in nats per supervised token; with its number of tokens."""
    scored = token_logprobs(model.weights, data.rows, pad_id=model.pad_id, batch_size=batch_size)
    counts = [row.num_scored for row in data.rows]
    return [(-logprobs.double().sum().item() / count, count) for logprobs, count in zip(scored, counts, strict=True)]


def sample_responses(
    model: ServedModel, data: HeldOutData, sampling: SamplingConfig, *, num_samples: int, seed: int, batch_size: int
) -> list[Completion]:
    """Draw K responses to each of N prompts, prompt by prompt."""
    prompt_ids = repeated(data.prompt_ids, num_samples)
    with progress_bar(model.name, len(prompt_ids)) as on_progress:
        return model.complete(
            prompt_ids,
            sampling,
            seed=seed,
            batch_size=batch_size,
            keys=sample_keys(len(data.prompts), num_samples),
            on_progress=on_progress,
        )


def describe_responses(
    model: ServedModel, completions: Sequence[Completion], sampling: SamplingConfig, *, num_samples: int
) -> Responses:
    """Summarize N·K completions, prompt by prompt."""
    texts = [model.text(completion, sampling) for completion in completions]
    tokens = [float(completion.num_tokens) for completion in completions]
    stopped = [float(completion.finish_reason != "length") for completion in completions]
    return Responses(
        texts=by_prompt(texts, num_samples),
        finish_reasons=[completion.finish_reason for completion in completions],
        tokens=expectation(by_prompt(tokens, num_samples)),
        stopped=_share(by_prompt(stopped, num_samples)),
        distinct={n: distinct(texts, n) for n in (1, 2, 3)},
    )


def _share(values_NK: Sequence[Sequence[float]]) -> Expectation:
    """Estimate a share of responses; near 0 and 1 its interval is that of as many responses as there are prompts."""
    found = expectation(values_NK)
    rate = rate_interval(found.mean * found.num_prompts, found.num_prompts)
    return replace(found, low=rate.low, high=rate.high)


def measure_kl(
    model: ServedModel,
    reference: ServedModel,
    data: HeldOutData,
    completions: Sequence[Completion],
    *,
    num_samples: int,
    batch_size: int,
) -> Expectation:
    """Estimate KL(model ‖ reference) of a response, in nats, along responses of its plain distribution."""
    prompt_ids = repeated(data.prompt_ids, num_samples)
    rows = [
        Row.answered(ids, response_ids(completion)) for ids, completion in zip(prompt_ids, completions, strict=True)
    ]
    kls = token_kls(model.weights, reference.weights, rows, pad_id=model.pad_id, batch_size=batch_size)
    return expectation(by_prompt([kl.double().sum().item() for kl in kls], num_samples))


def encode_pairs(model: ServedModel, section: DataConfig, *, seed: int) -> PairSet:
    """Read the pairs of a section, in the template and the forms that a model was trained with.

    Raises:
        DataError: rows that cannot be read.
    """
    section = replace(section, tools=model.rules.tools, reasoning=model.rules.reasoning)
    longest = longest_row(section.max_length, skeleton(model.config).config)
    loaded = load_pairs(section, model.template, model.tokenizer, max_length=longest, seed=seed, use_margin=False)
    return loaded.train


def implicit_reward_card(
    model: ServedModel, reference: ServedModel, pairs: PairSet, *, beta: float, batch_size: int
) -> dict[str, Any]:
    """Report how well β (ln π(y|x) − ln π_ref(y|x)), the implicit reward (Rafailov et al. 2023), ranks pairs."""
    dataset = pairs.dataset
    scores = []
    for side, masked in zip(("chosen_ids", "rejected_ids"), pairs.num_masked(), strict=True):
        rows = list(map(Row.answered, dataset["prompt_ids"], dataset[side], masked))
        ours, theirs = (
            token_logprobs(one.weights, rows, pad_id=one.pad_id, batch_size=batch_size) for one in (model, reference)
        )
        gains = [(a.double() - b.double()).sum().item() for a, b in zip(ours, theirs, strict=True)]
        scores.append([beta * gain for gain in gains])
    _, num_chosen, num_rejected = pairs.side_lengths()
    return report_card(scores[0], scores[1], num_chosen, num_rejected)


def by_prompt(values: Sequence[Any], num_samples: int) -> list[list[Any]]:
    """Split N·K values, prompt by prompt, into N lists of K."""
    return [list(values[start : start + num_samples]) for start in range(0, len(values), num_samples)]


def repeated(prompts: Sequence[T], num_samples: int) -> list[T]:
    """Take each prompt once for each of its samples."""
    return [prompt for prompt in prompts for _ in range(num_samples)]
