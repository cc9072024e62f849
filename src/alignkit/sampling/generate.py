"""Generation: many prompts through one model in padded batches, each row ending when it is done."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignkit.config import SamplingConfig
from alignkit.errors import ModelError
from alignkit.long_rope import turns_at
from alignkit.sampling.cache import BatchCache, is_known
from alignkit.sampling.columns import Columns
from alignkit.sampling.distribution import filter_logits
from alignkit.sampling.draw import draw
from alignkit.sampling.padding import chooses_columns, sees_left_padding, takes_positions
from alignkit.sampling.settings import draws

logger = logging.getLogger(__name__)

# What the code of an architecture raises that cannot take one token behind its cache.
_NO_STEP = (RuntimeError, IndexError, TypeError, ValueError, AttributeError, AssertionError)
_REFILL = 1 / 8  # of the rows have ended: a pass over a few prompts costs about as much as one over one


@dataclass(frozen=True, slots=True)
class Completion:
    """A response of the model to one prompt.

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

    Prompts of like length share a batch, the longest first, so that a batch too large for the memory fails at once; the
    slot of a row that ended goes to the next prompt. A prompt that is there several times is read once, and each of its
    rows goes on from there (where a model keeps more than keys and values, once in a batch). What a row draws is a
    function of (seed, its key, step) and the model's logits alone: the batch size changes no token, except where the
    rounding of the logits decides. With a batch size of 1 the shapes are a function of the row alone too, and so is
    every bit.

    Args:
        model: a causal language model, a PEFT model too; without a key/value cache it is slow.
        prompts: token ids, at least one each.
        sampling: settings without problems (see `check_sampling`).
        eos_ids: the tokens that end a response; they are not drawn before `min_new_tokens`.
        pad_id: any valid id; it fills the left of shorter prompts, unseen.
        seed: of every draw.
        batch_size: most prompts at once.
        keys: what tells the rows' draws apart, one for each prompt; None takes their indices 0, 1, ….
        decode: token ids to text; only `sampling.stop` asks for it.
        on_progress: called with the number of finished completions, each time one finishes.
        on_token: called with the index of a prompt and a token of its response, as it is drawn.

    Returns:
        One completion per prompt, in the order of the prompts.

    Raises:
        ModelError: a prompt is empty or leaves no room for `max_new_tokens`, or the logits are not finite.
    """
    assert keys is None or len(keys) == len(prompts), "a key for each prompt"
    assert decode is not None or not sampling.stop, "stop strings are looked for in text"
    _check_lengths(model, prompts, sampling.max_new_tokens)
    keys = range(len(prompts)) if keys is None else keys
    firsts: dict[tuple[int, ...], int] = {}
    rows = [
        _Row(index, firsts.setdefault(tuple(prompt), index), prompt, key)
        for index, (prompt, key) in enumerate(zip(prompts, keys, strict=True))
    ]
    waiting = sorted(rows, key=lambda row: (len(row.prompt), -row.first, -row.index))
    batch = _Batch(model, waiting, batch_size, sampling, eos_ids, pad_id, seed, decode, on_token)
    was_training = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            for num_done, _ in enumerate(batch.run(), start=1):
                if on_progress is not None:
                    on_progress(num_done)
    finally:
        model.train(was_training)
    return [row.completion for row in rows if row.completion is not None]


def cut_at_stop(text: str, sampling: SamplingConfig) -> str:
    """Cut a response's text at the first stop string in it."""
    return text[: min((at for stop in sampling.stop if (at := text.find(stop)) >= 0), default=len(text))]


@dataclass(slots=True)
class _Row:
    """A prompt in flight.

    Attributes:
        index: among the prompts.
        first: index of the first row with this prompt.
        prompt: its tokens.
        key: what tells its draws apart.
        drawn: the response so far.
        logprobs: of every token drawn, the end token too.
        completion: once it has ended.
    """

    index: int
    first: int
    prompt: Sequence[int]
    key: int | str
    drawn: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    completion: Completion | None = None

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.logprobs)


class _Batch:
    """The rows in flight, right-aligned in columns: slots of rows that ended go to those that wait.

    Args:
        waiting: the next one last; rows of one prompt lie together.
        size: most rows at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        waiting: list[_Row],
        size: int,
        sampling: SamplingConfig,
        eos_ids: Sequence[int],
        pad_id: int,
        seed: int,
        decode: Callable[[list[int]], str] | None,
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.waiting, self.size, self.sampling = model, waiting, size, sampling
        self.pad_id, self.seed, self.decode, self.on_token = pad_id, seed, decode, on_token
        self.stop_ids = set(eos_ids)
        self.eos_ids = torch.tensor(list(eos_ids), dtype=torch.long, device=model.device)
        base = getattr(model, "get_base_model", lambda: model)()  # a PEFT model takes any argument and passes it on
        self.name = type(base).__name__
        self.takes_positions = takes_positions(model)
        self.cache_name = _cache_name(base)
        self.keeps_cache = self.cache_name is not None
        self.is_settled = self.has_stepped = not self.keeps_cache
        self.longest = max((len(row.prompt) for row in waiting), default=0) + sampling.max_new_tokens
        if not self.keeps_cache:
            self.size = 1  # a state that runs over the tokens may run over padding too
            self.takes_positions = False  # they are those of a row alone, and Reformer fails at being told
            _warn_slow(self.name)
        elif size > 1 and chooses_columns(base.config, self.longest):
            self.size = 1
            _warn_choosy(self.name)
        self.turns_at = self._turn(base.config)
        if self.size > 1 and self.turns_at is not None:
            self.size = 1
            _warn_turning(self.name, self.turns_at)
        self.rows: list[_Row] = []
        self.held: Columns | None = None  # the prompt of the row that is next, where rows before it have it too

    def _turn(self, config: Any) -> int | None:
        """The length past which positions are encoded otherwise, where a row passes it; None where none does."""
        at, shortest = turns_at(config), min((len(row.prompt) for row in self.waiting), default=0)
        return at if at is not None and shortest <= at < self.longest else None

    def run(self) -> Iterator[_Row]:
        """Yield every row when it has ended."""
        while self.waiting:
            self.rows = self._next(self.size)
            read = self._read(self.rows)
            if not self.is_settled:
                self._settle(read.cache)
                if len(self.rows) > self.size:
                    self.waiting += reversed(self.rows)
                    continue
            self.columns = self._shared(read, self.rows)
            while True:
                ids_B = self._draw()
                yield from self._record(ids_B)
                ended = [slot for slot, row in enumerate(self.rows) if row.completion is not None]
                if len(ended) == len(self.rows):
                    break
                self._feed(ids_B, ended)
                if not self.rows:
                    break
                if len(ended) >= _REFILL * len(self.rows):
                    self._refill(ended)

    def _settle(self, cache: BatchCache) -> None:
        """Take one row at a time from now on where the model keeps what no batch can share, or sees padding."""
        self.is_settled = True
        if self.keeps_cache and cache.cache is None:
            self.keeps_cache, self.size = False, 1
            _warn_slow(self.name)
        elif len(self.rows) > 1 and not cache.takes_rows and self._must_go_alone(cache):
            self.size = 1
            _warn_alone(self.name)

    def _must_go_alone(self, cache: BatchCache) -> bool:
        return not is_known(cache.cache) or sees_left_padding(self.model, num_tokens=self.longest)

    def _takes_steps(self) -> bool:
        """Whether the architecture takes a token behind its cache at all."""
        ids_BS = torch.arange(4, device=self.model.device)[None]
        _, cache = self._forward(ids_BS[:, :3], None)
        try:
            self._forward(ids_BS, cache)
        except _NO_STEP:
            return False
        return True

    def _go_on_without_cache(self) -> None:
        """Let the rows in flight wait again: each is read anew, for every token, from where it is."""
        self.keeps_cache, self.size, self.held = False, 1, None
        _warn_slow(self.name)
        self.waiting += [row for row in reversed(self.rows) if row.completion is None]
        self.rows = []

    def _next(self, num_rows: int) -> list[_Row]:
        return [self.waiting.pop() for _ in range(min(num_rows, len(self.waiting)))]

    def _read(self, rows: Sequence[_Row]) -> Columns:
        """Each prompt of the rows once; the first of them may be held from rows before."""
        prompts = list({row.first: [*row.prompt, *row.drawn] for row in rows}.values())
        if self.held is None:
            return self._prefill(prompts)
        read = self.held.copy([0] * len(prompts))
        if len(prompts) > 1:
            read.put(range(1, len(prompts)), self._prefill(prompts[1:]))
        return read

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> Columns:
        width = max(map(len, prompts))
        padded = [[-1] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        ids_BS = torch.tensor(padded, device=self.model.device)
        logits_BV, cache = self._forward(ids_BS, None)
        return Columns(ids_BS, logits_BV, BatchCache(cache))

    def _shared(self, read: Columns, rows: Sequence[_Row]) -> Columns:
        """Make what was read of each prompt the rows that have it, and hold the last one if more of them wait."""
        slots = {first: slot for slot, first in enumerate(dict.fromkeys(row.first for row in rows))}
        self.held = None
        if self.waiting and self.waiting[-1].first == rows[-1].first and self._can_hold(read.cache):
            self.held = read.copy([slots[rows[-1].first]])
            self.held.narrow(len(rows[-1].prompt))
        if len(slots) < len(rows):
            read.keep([slots[row.first] for row in rows])
        return read

    def _can_hold(self, cache: BatchCache) -> bool:
        return cache.takes_rows or (self.size == 1 and is_known(cache.cache))

    def _feed(self, ids_B: Tensor, ended: Sequence[int]) -> None:
        """Make the drawn tokens the newest column; a row that ended is fed padding until its slot is taken."""
        columns = self.columns
        if ended:
            ids_B = ids_B.index_fill(0, columns.on_device(ended), -1)
        columns.ids_BS = torch.cat([columns.ids_BS, ids_B[:, None]], dim=-1)
        if columns.width - 1 == self.turns_at:
            columns.logits_BV, cache = self._forward(columns.ids_BS, None)  # the keys that are kept are of before
            columns.cache = BatchCache(cache)
            return
        try:
            columns.logits_BV, _ = self._forward(columns.ids_BS, columns.cache.cache)
        except _NO_STEP:
            if self.has_stepped or self._takes_steps():
                raise
            self._go_on_without_cache()
        self.has_stepped = True

    def _refill(self, ended: Sequence[int]) -> None:
        """Give the slots of rows that ended to the next prompts; where none waits, drop them."""
        columns = self.columns
        fresh = self._next(len(ended)) if columns.cache.takes_rows else []
        if fresh:
            columns.put(ended[: len(fresh)], self._shared(self._read(fresh), fresh))
            for slot, row in zip(ended, fresh, strict=False):
                self.rows[slot] = row
        if len(fresh) < len(ended):
            kept = [slot for slot, row in enumerate(self.rows) if row.completion is None]
            self.rows = [self.rows[slot] for slot in kept]
            columns.keep(kept)
        if columns.cache.takes_rows:
            columns.narrow(max(row.length for row in self.rows))

    def _forward(self, ids_BS: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits of the next token, and the cache, which has seen all columns but the newest; None has seen none."""
        mask_BS = ids_BS >= 0
        positions_BS = (mask_BS.cumsum(-1) - 1).clamp(min=0)
        unseen = slice(None if cache is None else -1, None)
        output = self.model(
            input_ids=ids_BS.where(mask_BS, self.pad_id)[:, unseen],
            attention_mask=mask_BS.long(),
            use_cache=self.keeps_cache,
            logits_to_keep=1,
            **({"position_ids": positions_BS[:, unseen]} if self.takes_positions else {}),
            **({str(self.cache_name): cache} if cache is not None else {}),
        )
        cache = output.get(self.cache_name)
        logits_BV: Tensor = output.logits[:, -1].float()
        return logits_BV, cache

    def _draw(self) -> Tensor:
        """The next token of each row."""
        logits_BV, sampling = self.columns.logits_BV, self.sampling
        may_not_end = [slot for slot, row in enumerate(self.rows) if len(row.drawn) < sampling.min_new_tokens]
        if may_not_end:
            logits_BV = logits_BV.clone()
            logits_BV[self.columns.on_device(may_not_end)[:, None], self.eos_ids] = -torch.inf
        logits_BV = filter_logits(logits_BV, sampling, self.columns.ids_BS)
        if not draws(sampling):
            return logits_BV.argmax(-1)
        keys, steps = [row.key for row in self.rows], [len(row.drawn) for row in self.rows]
        return draw(logits_BV.softmax(-1), seed=self.seed, rows=keys, steps=steps)

    def _record(self, ids_B: Tensor) -> Iterator[_Row]:
        """Note the drawn tokens, and yield the rows that end with them."""
        logprobs_B = self.columns.logits_BV.log_softmax(-1).gather(-1, ids_B[:, None]).squeeze(-1)
        ids, logprobs = torch.stack([ids_B.float(), logprobs_B]).tolist()  # at once: each look waits for the device
        for row, token, logprob in zip(self.rows, map(int, ids), logprobs, strict=True):
            if row.completion is not None:
                continue
            if not math.isfinite(logprob):
                raise ModelError(f"prompt {row.index + 1}: the model's logits are not finite numbers")
            row.logprobs.append(logprob)
            reason = self._reason(row, token)
            if reason is not None:
                end_id = token if reason == "stop" else None
                row.completion = Completion(row.drawn, reason, sum(row.logprobs), end_id, row.logprobs)
                yield row

    def _reason(self, row: _Row, token: int) -> Literal["stop", "stop_string", "length"] | None:
        """Why the response ends with this token, which is part of it unless it is an end token; None to go on."""
        if token in self.stop_ids:
            return "stop"
        row.drawn.append(token)
        if self.on_token is not None:
            self.on_token(row.index, token)
        if self._ends_in_stop_string(row.drawn):
            return "stop_string"
        return "length" if len(row.drawn) == self.sampling.max_new_tokens else None

    def _ends_in_stop_string(self, drawn: list[int]) -> bool:
        if not self.sampling.stop:
            return False
        assert self.decode is not None
        # A token has a byte or more, so what the last one completed lies in as many tokens as the text has bytes.
        window = max(len(stop.encode()) for stop in self.sampling.stop) + 1
        text = self.decode(drawn[-window:])
        return any(stop in text for stop in self.sampling.stop)


def _cache_name(base: Any) -> str | None:
    """The argument that takes the key/value cache; None where a model has none."""
    taken = inspect.signature(base.forward).parameters
    if "past_key_values" in taken:  # up to transformers 5.23, and in code of other people's
        return "past_key_values"
    # Mamba's state, which no batch can share, goes by the same name.
    return "cache" if "cache" in taken and hasattr(base.config, "num_attention_heads") else None


@cache
def _warn_slow(model: str) -> None:
    logger.warning(
        "%s has no key/value cache that it goes on from: it generates one response at a time, and rereads it for every "
        "token",
        model,
    )


@cache
def _warn_alone(model: str) -> None:
    logger.warning("%s keeps more than keys and values between tokens: it generates one response at a time", model)


@cache
def _warn_choosy(model: str) -> None:
    logger.warning(
        "%s attends to tokens that it chooses, which padding may change: it generates one response at a time", model
    )


@cache
def _warn_turning(model: str, at: int) -> None:
    logger.warning(
        "%s encodes positions otherwise beside a row of more than %d tokens: it generates one response at a time",
        model,
        at,
    )


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
