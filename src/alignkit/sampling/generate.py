"""Generation: many prompts through one model in padded batches, each row ending when it is done."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignkit.config import SamplingConfig
from alignkit.errors import ModelError
from alignkit.sampling.distribution import distribution
from alignkit.sampling.draw import draw
from alignkit.sampling.settings import draws


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model said to one prompt.

    Attributes:
        token_ids: the response, without the end token; a stop string's tokens are in it.
        finish_reason: `stop` where the model ended it, `stop_string` where a text of `sampling.stop` did, `length`
            where `max_new_tokens` did.
        logprob: sum in nats of the log-probabilities of the response and of the end token that closed it, under the
            model's plain distribution (temperature 1, nothing truncated), whatever it was sampled from.
        end_id: the token that ended it; None unless `finish_reason` is `stop`.
        token_logprobs: the terms of `logprob`, one for each token and one for the end token.
    """

    token_ids: list[int]
    finish_reason: Literal["stop", "stop_string", "length"]
    logprob: float
    end_id: int | None = None
    token_logprobs: list[float] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
    seed: int,
    batch_size: int,
    keys: Sequence[int | str] | None = None,
    decode: Callable[[list[int]], str] | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Complete every prompt.

    Prompts of like length share a batch, the longest first, so that a batch too large for the memory fails at once. A
    row leaves its batch when it ends. What a row draws is a function of (seed, its key, step) and the model's logits
    alone: the batch size changes no token, except where the rounding of the logits decides. With a batch size of 1 the
    shapes are a function of the row alone too, and so is every bit.

    Args:
        model: a causal language model with a key/value cache; a PEFT model too.
        prompts: token ids, at least one each.
        sampling: settings without problems (see `settings.check`).
        eos_ids: the tokens that end a response; they are not drawn before `min_new_tokens`.
        pad_id: any valid id; it fills the left of shorter prompts, unseen.
        seed: of every draw.
        batch_size: most prompts at once.
        keys: what tells the rows' draws apart, one for each prompt; None takes their places 0, 1, ….
        decode: token ids to text; only `sampling.stop` asks for it.
        on_progress: told how many completions are finished, each time some are.
        on_token: told the place of a prompt and a token of its response, as it is drawn.

    Returns:
        One completion per prompt, in the order of the prompts.

    Raises:
        ModelError: a prompt is empty or leaves no room for `max_new_tokens`, or the logits are not finite.
    """
    assert keys is None or len(keys) == len(prompts), "a key for each prompt"
    assert decode is not None or not sampling.stop, "stop strings are looked for in text"
    _check_lengths(model, prompts, sampling.max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    keys = range(len(prompts)) if keys is None else keys
    done: dict[int, Completion] = {}
    was_training = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = _Batch(model, prompts, rows, keys, sampling, eos_ids, pad_id, seed)
                batch.decode, batch.on_token = decode, on_token
                while batch.rows:
                    finished = batch.step()
                    done |= finished
                    if finished and on_progress is not None:
                        on_progress(len(done))
    finally:
        model.train(was_training)
    return [done[row] for row in range(len(prompts))]


def cut_at_stop(text: str, sampling: SamplingConfig) -> str:
    """A response's text up to the first stop string in it."""
    return text[: min((at for stop in sampling.stop if (at := text.find(stop)) >= 0), default=len(text))]


class _Batch:
    """The rows in flight and what the model must be fed next for them; B shrinks as rows end."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        keys: Sequence[int | str],
        sampling: SamplingConfig,
        eos_ids: Sequence[int],
        pad_id: int,
        seed: int,
    ) -> None:
        self.model, self.keys, self.sampling, self.seed = model, keys, sampling, seed
        self.decode: Callable[[list[int]], str] | None = None
        self.on_token: Callable[[int, int], None] | None = None
        self.rows = list(rows)
        self.drawn: list[list[int]] = [[] for _ in rows]
        self.logprobs: list[list[float]] = [[] for _ in rows]
        self.stop_ids = set(eos_ids)
        self.eos_ids = torch.tensor(list(eos_ids), dtype=torch.long, device=model.device)
        width = max(len(prompts[row]) for row in rows)
        padded = [[-1] * (width - len(prompts[row])) + list(prompts[row]) for row in rows]
        self.previous_ids = torch.tensor(padded, device=model.device)  # [B, S], -1 on padding
        self.mask = self.previous_ids >= 0
        self.input_ids = self.previous_ids.where(self.mask, pad_id)  # what the cache has not seen yet
        self.positions = (self.mask.long().cumsum(-1) - 1).clamp(min=0)
        self.cache: Any = None
        base = getattr(model, "get_base_model", lambda: model)()  # a PEFT model takes any argument and passes it on
        self.takes_positions = "position_ids" in inspect.signature(base.forward).parameters

    def step(self) -> dict[int, Completion]:
        """Draw one token per row; the completions of the rows that ended with it."""
        logits_BV = self._forward()
        allowed_BV, num_drawn = logits_BV, len(self.drawn[0])
        if num_drawn < self.sampling.min_new_tokens:
            allowed_BV = logits_BV.index_fill(-1, self.eos_ids, -torch.inf)
        probabilities_BV = distribution(allowed_BV, self.sampling, self.previous_ids)
        if draws(self.sampling):
            ids_B = draw(probabilities_BV, seed=self.seed, rows=[self.keys[row] for row in self.rows], step=num_drawn)
        else:
            ids_B = probabilities_BV.argmax(-1)
        logprobs_B = logits_BV.gather(-1, ids_B[:, None]).squeeze(-1) - logits_BV.logsumexp(-1)
        finished = self._record(ids_B.tolist(), logprobs_B.tolist())
        self._advance(ids_B, [place for place in range(len(ids_B)) if place not in finished])
        return dict(finished.values())

    def _forward(self) -> Tensor:
        positions = {"position_ids": self.positions} if self.takes_positions else {}
        cache = {} if self.cache is None else {"past_key_values": self.cache}
        output = self.model(
            input_ids=self.input_ids,
            attention_mask=self.mask.long(),
            use_cache=True,
            logits_to_keep=1,
            **positions,
            **cache,
        )
        self.cache = output.get("past_key_values")
        if self.cache is None:
            raise ModelError(f"{type(self.model).__name__} keeps no key/value cache, which generation needs")
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _record(self, ids: list[int], logprobs: list[float]) -> dict[int, tuple[int, Completion]]:
        """Note the drawn tokens; (row, completion) by the place in the batch of those that ended."""
        finished = {}
        for place, (token, logprob) in enumerate(zip(ids, logprobs, strict=True)):
            if not math.isfinite(logprob):
                raise ModelError(f"prompt {self.rows[place] + 1}: the model's logits are not finite numbers")
            self.logprobs[place].append(logprob)
            reason = self._reason(place, token)
            if reason is not None:
                terms, end_id = self.logprobs[place], token if reason == "stop" else None
                completion = Completion(self.drawn[place], reason, sum(terms), end_id, terms)
                finished[place] = (self.rows[place], completion)
        return finished

    def _reason(self, place: int, token: int) -> Literal["stop", "stop_string", "length"] | None:
        """Why the response ends with this token, which is part of it unless it is an end token; None to go on."""
        if token in self.stop_ids:
            return "stop"
        self.drawn[place].append(token)
        if self.on_token is not None:
            self.on_token(self.rows[place], token)
        if self._says_stop(self.drawn[place]):
            return "stop_string"
        return "length" if len(self.drawn[place]) == self.sampling.max_new_tokens else None

    def _says_stop(self, drawn: list[int]) -> bool:
        if not self.sampling.stop:
            return False
        assert self.decode is not None
        # A token has a byte or more, so what the last one completed lies in as many tokens as the text has bytes.
        window = max(len(stop.encode()) for stop in self.sampling.stop) + 1
        text = self.decode(drawn[-window:])
        return any(stop in text for stop in self.sampling.stop)

    def _advance(self, ids_B: Tensor, kept: list[int]) -> None:
        """Make the drawn tokens the next input, of the rows that are kept."""
        self.input_ids = ids_B[:, None]
        self.previous_ids = torch.cat([self.previous_ids, self.input_ids], dim=-1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids_B), 1)], dim=-1)
        self.positions = self.positions[:, -1:] + 1
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in kept]
        self.drawn = [self.drawn[place] for place in kept]
        self.logprobs = [self.logprobs[place] for place in kept]
        if kept:
            places = torch.tensor(kept, device=ids_B.device)
            self.input_ids, self.previous_ids = self.input_ids[places], self.previous_ids[places]
            self.mask, self.positions = self.mask[places], self.positions[places]
            self.cache.batch_select_indices(places)


def _check_lengths(model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    num_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    problems = []
    for row, prompt in enumerate(prompts, start=1):
        if not prompt:
            problems.append(f"prompt {row} has no tokens: give it some text")
        elif num_positions is not None and len(prompt) + max_new_tokens > num_positions:
            problems.append(
                f"prompt {row} has {len(prompt)} tokens, which with sampling.max_new_tokens={max_new_tokens} is more "
                f"than the model's {num_positions} positions: shorten the one or the other"
            )
    if problems:
        raise ModelError(*problems)
