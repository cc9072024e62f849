"""What a completion is asked with at `/v1/completions`, and what its answer says: tokens in, tokens out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from alignkit.config import SamplingConfig
from alignkit.engine.client import Refused
from alignkit.sampling.generate import Completion
from alignkit.sampling.settings import draws


@dataclass(frozen=True, slots=True)
class Request:
    """One completion that is wanted.

    Attributes:
        prompt_ids: tokens.
        key: what tells its draws apart from those of other requests.
        group: requests of one group go to one server, which then reads their prompt once.
    """

    prompt_ids: Sequence[int]
    key: str
    group: int


def seed_of(seed: int, key: str) -> int:
    """Return the seed of one completion, below 2⁶³: a function of the seed of the whole and of the key."""
    return int.from_bytes(blake2b(f"{seed} {key}".encode(), digest_size=8).digest(), "big") >> 1


def body_of(
    request: Request, sampling: SamplingConfig, *, model: str, eos_ids: Sequence[int], seed: int
) -> dict[str, Any]:
    """Build the body of a request.

    What is left out a server takes from the generation config of its folder, so everything that shapes the distribution
    is said, at its neutral value where the section leaves it open. The end tokens of the folder do not count either:
    ours alone do.

    Args:
        request: what is wanted.
        sampling: settings without problems and without schedules.
        model: the name of the model or adapter.
        eos_ids: the tokens that end a response.
        seed: of the whole.
    """
    drawn = draws(sampling)
    return {
        "model": model,
        "prompt": list(request.prompt_ids),
        "n": 1,
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": sampling.min_new_tokens,
        "temperature": _or(sampling.temperature, 1.0) if drawn else 0.0,
        "top_k": _or(sampling.top_k, 0) if drawn else 0,
        "top_p": _or(sampling.top_p, 1.0) if drawn else 1.0,
        "min_p": _or(sampling.min_p, 0.0) if drawn else 0.0,
        "repetition_penalty": _or(sampling.repetition_penalty, 1.0),
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed_of(seed, request.key),
        "stop": list(sampling.stop),
        "stop_token_ids": list(eos_ids),
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
        "skip_special_tokens": False,
    }


def completion_of(
    answered: Mapping[str, Any], sampling: SamplingConfig, *, eos_ids: Sequence[int], num_tokens: int
) -> Completion:
    """Read an answer.

    Args:
        answered: to a request of `body_of`.
        sampling: what it was asked with.
        eos_ids: the tokens that end a response.
        num_tokens: of the vocabulary.

    Returns:
        The completion; its log-probabilities are of the distribution it was drawn from, in nats.

    Raises:
        Refused: it is nothing that this request can be answered with.
    """
    try:
        (choice,) = answered["choices"]
        ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        reason, stopped_by = choice["finish_reason"], choice.get("stop_reason")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refused("an answer has no tokens or no log-probabilities") from error
    if problem := _problem(ids, logprobs, num_tokens=num_tokens):
        raise Refused(problem)
    ends = set(eos_ids)
    is_closed = reason == "stop" and ids[-1] in ends
    body = ids[:-1] if is_closed else ids
    if any(token in ends for token in body) or len(ids) > sampling.max_new_tokens:
        raise Refused(f"an answer of {len(ids)} tokens does not end where it should")
    logprob = math.fsum(logprobs)
    if is_closed:
        return Completion(body, "stop", logprob, ids[-1], logprobs)
    if reason == "stop" and isinstance(stopped_by, str) and stopped_by in sampling.stop:
        return Completion(body, "stop_string", logprob, None, logprobs)
    if reason == "length" and len(ids) == sampling.max_new_tokens:
        return Completion(body, "length", logprob, None, logprobs)
    raise Refused(f"an answer of {len(ids)} tokens ends without a reason ({reason})")


def _problem(ids: Any, logprobs: Any, *, num_tokens: int) -> str:
    if not (isinstance(ids, list) and ids and isinstance(logprobs, list) and len(ids) == len(logprobs)):
        return "an answer does not have a log-probability for each of its tokens"
    if not all(isinstance(token, int) and 0 <= token < num_tokens for token in ids):
        return f"an answer has a token that is not of the {num_tokens:,}"
    if not all(isinstance(value, (int, float)) and math.isfinite(value) and value <= 1e-3 for value in logprobs):
        return "an answer has a log-probability that is none"
    return ""


def _or(value: Any, neutral: float) -> Any:
    return neutral if value is None else value
