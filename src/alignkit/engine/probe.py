"""Whether a server draws from the distribution of the model that is loaded here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from alignkit.config import SamplingConfig
from alignkit.engine.client import Refused, Unanswered
from alignkit.engine.request import Request
from alignkit.engine.vllm_server import VllmServer
from alignkit.errors import ConfigError
from alignkit.sampling.distribution import filter_logits
from alignkit.sampling.generate import Completion
from alignkit.sampling.settings import draws

_NUM_TOKENS = 32  # of a probe's completion
_NUM_PROMPTS = 4


@dataclass(frozen=True)
class Probe:
    """What was seen of a server.

    Attributes:
        url: its address.
        difference: mean of |ln π − ln π_engine| over the tokens, in nats.
        num_tokens: that were compared.
    """

    url: str
    difference: float
    num_tokens: int

    def __str__(self) -> str:
        return f"{self.url}: {self.difference:.1e} nats a token from the model here, over {self.num_tokens} tokens"


def probe(
    servers: Sequence[VllmServer],
    model: Any,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[SamplingConfig],
    *,
    eos_ids: Sequence[int],
    num_tokens: int,
    max_difference: float,
) -> list[Probe]:
    """Let each server complete a few prompts, and score what it drew with the model that is loaded here.

    Args:
        servers: with the adapter of the model loaded, where it has one.
        model: the same.
        prompts: tokens; the first few are taken.
        samplings: the settings to ask with; those that are drawn from.
        eos_ids: the tokens that end a response.
        num_tokens: of the vocabulary.
        max_difference: of the mean, in nats a token.

    Raises:
        ConfigError: one line for each server that draws from something else, with what it is.
    """
    found, problems = [], []
    for server in servers:
        differences: list[Tensor] = []
        for sampling in samplings:
            short = replace(
                sampling,
                max_new_tokens=min(sampling.max_new_tokens, _NUM_TOKENS),
                min_new_tokens=min(sampling.min_new_tokens, _NUM_TOKENS),
            )
            try:
                answers = _answers(server, prompts[:_NUM_PROMPTS], short, eos_ids, num_tokens)
            except (Unanswered, Refused) as error:
                problems.append(f"engine.servers: {server.url} completes no prompt of the run: {error}")
                break
            differences.append(_differences(model, answers, short, eos_ids))
            if float(differences[-1].mean()) > max_difference:
                problems.append(
                    f"engine.servers: {server.url} {_what_it_is(model, answers, short, eos_ids, max_difference)}"
                )
                break
        else:
            all_N = torch.cat(differences)
            found.append(Probe(server.url, float(all_N.mean()), len(all_N)))
    if problems:
        raise ConfigError(*problems)
    return found


Answers = Sequence[tuple[Sequence[int], Completion]]


def _answers(
    server: VllmServer,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    eos_ids: Sequence[int],
    num_tokens: int,
) -> Answers:
    return [
        (
            ids,
            server.complete(
                Request(ids, f"probe {row}", row), sampling, eos_ids=eos_ids, num_tokens=num_tokens, seed=0
            ),
        )
        for row, ids in enumerate(prompts)
    ]


def _differences(
    model: Any, answers: Answers, sampling: SamplingConfig, eos_ids: Sequence[int], *, plain: bool = False
) -> Tensor:
    parts = []
    for prompt, completion in answers:
        ids = completion.token_ids + ([] if completion.end_id is None else [completion.end_id])
        own_T = logprobs_of(model, prompt, ids, SamplingConfig() if plain else sampling, eos_ids)
        parts.append((own_T.cpu() - torch.tensor(completion.token_logprobs)).abs())
    return torch.cat(parts)


@torch.no_grad()
def logprobs_of(
    model: Any, prompt: Sequence[int], ids: Sequence[int], sampling: SamplingConfig, eos_ids: Sequence[int]
) -> Tensor:
    """Compute the log-probabilities `[T]` of a completion's tokens under the distribution they are drawn from."""
    device, start = next(model.parameters()).device, len(prompt)
    row = torch.tensor([[*prompt, *ids]], device=device)
    logits_TV = model(input_ids=row, use_cache=False).logits[0, start - 1 : -1].float()
    logits_TV[: sampling.min_new_tokens, list(eos_ids)] = -torch.inf
    steps_T1 = torch.arange(len(ids), device=device)[:, None]
    before_TS = row.expand(len(ids), -1).masked_fill(torch.arange(row.shape[1], device=device) >= start + steps_T1, -1)
    filtered_TV = filter_logits(logits_TV, replace(sampling, do_sample=draws(sampling)), before_TS)
    return filtered_TV.log_softmax(-1).gather(-1, torch.tensor(ids, device=device)[:, None]).squeeze(-1)


def _what_it_is(
    model: Any, answers: Answers, sampling: SamplingConfig, eos_ids: Sequence[int], max_difference: float
) -> str:
    """What a server draws from, where it is not what it should be."""

    def is_near(difference: Callable[[], Tensor]) -> bool:
        return float(difference().mean()) <= max_difference

    if is_near(lambda: _differences(model, answers, sampling, eos_ids, plain=True)):
        return (
            f"tells log-probabilities before temperature, not those it draws from (sampling.temperature="
            f"{sampling.temperature}): start it with --logprobs-mode processed_logprobs"
        )
    with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
        if is_near(lambda: _differences(model, answers, sampling, eos_ids)):
            return "completes with the base model, without the adapter"
    mean = float(_differences(model, answers, sampling, eos_ids).mean())
    return (
        f"serves another model, or another revision of it: the log-probabilities of what it draws differ by {mean:.2g} "
        f"nats a token from those of the model here (at most {max_difference:g})"
    )
