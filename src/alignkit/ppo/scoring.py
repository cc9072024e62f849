"""Log-probabilities, entropies and hidden states of completions in one pass of a causal model.

The LM head computes only the positions that predict a completion token, a few at a time: `[B, T, V]` never exists in
float32, neither forward nor backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignkit.ppo.loss import token_entropies
from alignkit.sampling.padding import sees_left_padding, takes_positions
from alignkit.training.lm_head import hidden_states, is_plain_head, lm_head, rows_at_once
from alignkit.training.log_probs import Blocked, token_scores


@dataclass(frozen=True, slots=True)
class Sequences:
    """Prompts and completions as the model is fed.

    Attributes:
        input_ids_BL: L = P + T; prompts end and completions begin at position P, padding is on both outer sides.
        attention_BL: 1 where there is a token.
        mask_BT: true where there is a completion token.
        blocked_BT: true where the sampler was not allowed to end (before `min_new_tokens`).
        prompt_lengths: tokens of each prompt.
        completion_lengths: tokens of each completion.
    """

    input_ids_BL: Tensor
    attention_BL: Tensor
    mask_BT: Tensor
    blocked_BT: Tensor
    prompt_lengths: tuple[int, ...]
    completion_lengths: tuple[int, ...]

    @property
    def completion_ids_BT(self) -> Tensor:
        return self.input_ids_BL[:, self.input_ids_BL.shape[1] - self.mask_BT.shape[1] :]

    def take(self, indices: Sequence[int]) -> Sequences:
        """Return some of the rows, without the columns in which they have padding alone."""
        prompt_lengths = tuple(self.prompt_lengths[index] for index in indices)
        completion_lengths = tuple(self.completion_lengths[index] for index in indices)
        width, length = max(prompt_lengths), max(1, *completion_lengths)
        first = self.input_ids_BL.shape[1] - self.mask_BT.shape[1] - width
        rows = list(indices)
        return Sequences(
            self.input_ids_BL[rows, first : first + width + length],
            self.attention_BL[rows, first : first + width + length],
            self.mask_BT[rows, :length],
            self.blocked_BT[rows, :length],
            prompt_lengths,
            completion_lengths,
        )


def pad_sequences(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    pad_id: int,
    min_new_tokens: int,
    device: torch.device,
) -> Sequences:
    """Pad prompts on the left and completions on the right, each to the longest of these rows.

    Args:
        prompts: token ids.
        completions: token ids, one for each prompt.
        pad_id: any valid id; it is never attended to.
        min_new_tokens: how many tokens the sampler had to draw before an end token.
        device: of the tensors.
    """
    prompt_lengths, completion_lengths = tuple(map(len, prompts)), tuple(map(len, completions))
    width, length = max(prompt_lengths), max(1, *completion_lengths)
    ids = [
        [pad_id] * (width - len(prompt)) + list(prompt) + list(completion) + [pad_id] * (length - len(completion))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    positions_T = torch.arange(length)
    mask_BT = positions_T < torch.tensor(completion_lengths)[:, None]
    prompt_BP = torch.arange(width) >= width - torch.tensor(prompt_lengths)[:, None]
    blocked_BT = mask_BT & (positions_T < min_new_tokens)
    attention_BL = torch.cat([prompt_BP, mask_BT], dim=1).long()
    return Sequences(
        torch.tensor(ids).to(device),
        attention_BL.to(device),
        mask_BT.to(device),
        blocked_BT.to(device),
        prompt_lengths,
        completion_lengths,
    )


def inputs_of(rows: Sequences, *, takes_positions: bool) -> dict[str, Tensor]:
    """Return what a model is fed; positions count from the first token of each row, where the model takes any."""
    inputs = {"input_ids": rows.input_ids_BL, "attention_mask": rows.attention_BL}
    positions = {"position_ids": (rows.attention_BL.cumsum(-1) - 1).clamp(min=0)} if takes_positions else {}
    return inputs | positions


def predicting_positions(rows: Sequences) -> slice:
    """Return the T positions whose states predict the completion's tokens: each the one before its token."""
    return slice(-rows.mask_BT.shape[1] - 1, -1)


def at_left(rows: Sequences) -> Sequences:
    """Return rows that begin in the first column, for models that see padding in front of one."""
    length = rows.input_ids_BL.shape[1]
    columns_BL = (torch.arange(length, device=rows.input_ids_BL.device) + _shifts_B1(rows)) % length
    return replace(
        rows, input_ids_BL=rows.input_ids_BL.gather(1, columns_BL), attention_BL=rows.attention_BL.gather(1, columns_BL)
    )


def predicting_at_left(rows: Sequences, states_BLH: Tensor) -> Tensor:
    """Return the states, `[B, T, H]`, that predict the completion's tokens, of what `at_left` laid."""
    length, num_tokens = rows.input_ids_BL.shape[1], rows.mask_BT.shape[1]
    first = length - num_tokens - 1
    places_BT = torch.arange(first, length - 1, device=states_BLH.device) - _shifts_B1(rows)
    return states_BLH.gather(1, places_BT[..., None].expand(-1, -1, states_BLH.shape[-1]))


def _shifts_B1(rows: Sequences) -> Tensor:
    """How many columns of padding are in front of each row."""
    width = rows.input_ids_BL.shape[1] - rows.mask_BT.shape[1]
    return width - torch.tensor(rows.prompt_lengths, device=rows.input_ids_BL.device)[:, None]


@dataclass(frozen=True, slots=True)
class CompletionScores:
    """What a model makes of each completion token; 0 where there is none.

    Attributes:
        logprobs_BT: of the drawn token, in nats, under softmax(logits / temperature).
        entropies_BT: of that distribution.
        hidden_BTH: the state that predicted the token: what a value head looks at.
    """

    logprobs_BT: Tensor
    entropies_BT: Tensor
    hidden_BTH: Tensor


class CompletionScorer:
    """Scores completions under one model, adapters or not.

    Args:
        model: a causal language model.
        eos_ids: the tokens that end a completion.
        entropy_trains: entropies carry a gradient; without, they cost no memory in the backward pass.
    """

    def __init__(self, model: Any, *, eos_ids: Sequence[int], entropy_trains: bool) -> None:
        self.head = lm_head(model)
        self.is_plain = is_plain_head(model)  # else the model does something to the logits: it must make them itself
        self.eos_ids, self.entropy_trains = list(eos_ids), entropy_trains
        self.takes_positions, self.sees_padding = takes_positions(model), sees_left_padding(model)

    def __call__(self, model: nn.Module, rows: Sequences, *, temperature: float) -> CompletionScores:
        """Score completions in one forward pass.

        Args:
            model: the one the scorer was made for, with whatever adapter is active now.
            rows: prompts and completions.
            temperature: the sampler's.
        """
        mask_BT = rows.mask_BT
        hidden_BTH, scored = self._forward(model, rows)
        logprobs_N, entropies_N = self._score(
            scored[mask_BT], rows.completion_ids_BT[mask_BT], rows.blocked_BT[mask_BT], temperature
        )
        zeros_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
        return CompletionScores(
            zeros_BT.masked_scatter(mask_BT, logprobs_N), zeros_BT.masked_scatter(mask_BT, entropies_N), hidden_BTH
        )

    def _forward(self, model: nn.Module, rows: Sequences) -> tuple[Tensor, Tensor]:
        """The states that predict the completions, and these again or, where the head is not plain, their logits."""
        if self.sees_padding:
            return self._forward_at_left(model, rows)
        inputs, before = inputs_of(rows, takes_positions=self.takes_positions), predicting_positions(rows)
        if self.is_plain:
            with hidden_states(self.head) as caught:
                model(**inputs, use_cache=False)
            return caught[0][:, before], caught[0][:, before]
        seen: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            logits = model(**inputs, use_cache=False, logits_to_keep=rows.mask_BT.shape[1] + 1).logits
        finally:
            handle.remove()
        return seen[0][:, before], logits[:, before]

    def _forward_at_left(self, model: nn.Module, rows: Sequences) -> tuple[Tensor, Tensor]:
        """As `_forward`, of rows that begin in the first column."""
        inputs = inputs_of(at_left(rows), takes_positions=self.takes_positions)
        seen: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            logits = model(**inputs, use_cache=False).logits
        finally:
            handle.remove()
        hidden_BTH = predicting_at_left(rows, seen[0])
        return hidden_BTH, hidden_BTH if self.is_plain else predicting_at_left(rows, logits)

    def _score(
        self, scored_N: Tensor, targets_N: Tensor, blocked_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        if self.is_plain and not self.entropy_trains:
            ids_E = torch.tensor(self.eos_ids, device=blocked_N.device)
            blocked = Blocked(blocked_N, ids_E) if bool(blocked_N.any()) else None
            scores = token_scores(scored_N, self.head.weight, targets_N, temperature=temperature, blocked=blocked)
            return scores.log_probs, scores.entropy
        rows = rows_at_once(self.head.weight)
        parts: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(targets_N), rows):
            chunk = slice(start, start + rows)
            args = scored_N[chunk], targets_N[chunk], blocked_N[chunk], temperature
            if torch.is_grad_enabled() and len(targets_N) > rows:  # else all chunks' logits would wait for backward
                parts.append(checkpoint(self._chunk, *args, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(self._chunk(*args))
        if not parts:
            nothing = scored_N.float().sum(-1)  # in the graph, so that an empty batch has its zero gradient
            return nothing, nothing
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _chunk(
        self, scored_N: Tensor, targets_N: Tensor, blocked_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logits_NV = (self.head(scored_N) if self.is_plain else scored_N).float() / temperature
        if bool(blocked_N.any()):
            ends_V = torch.zeros(logits_NV.shape[-1], dtype=torch.bool, device=logits_NV.device)
            ends_V[self.eos_ids] = True
            # finite, so that 0 · ln 0 stays 0 in the entropy
            logits_NV = logits_NV.masked_fill(blocked_N[:, None] & ends_V, torch.finfo(torch.float32).min / 2)
        logprobs_N = logits_NV.gather(-1, targets_N[:, None]).squeeze(-1) - logits_NV.logsumexp(-1)
        return logprobs_N, token_entropies(logits_NV if self.entropy_trains else logits_NV.detach())
