"""Whether a server renders, stops and scores as the model was trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from alignkit.config import SamplingConfig
from alignkit.data.encode.rendering import first_difference
from alignkit.engine.client import Refused
from alignkit.evaluate.finding import Finding
from alignkit.evaluate.likelihood import Row, token_logprobs
from alignkit.evaluate.served_model import ServedModel
from alignkit.evaluate.server import Messages, Reply, Server
from alignkit.evaluate.trained import example_rows
from alignkit.models.load import num_positions
from alignkit.models.skeleton import skeleton
from alignkit.sampling.generate import Completion

MAX_DIFFERENCE = 0.05  # nats a token in the mean: bfloat16 makes about 0.01 of it, 4 bits more, other weights much more
_NUM_REPLIES = 8
_SAMPLING = SamplingConfig(do_sample=False, max_new_tokens=64)
_FURTHER = 8  # tokens that a server is given beyond the end, to show that it does not go on


@dataclass(frozen=True)
class Asked:
    """A chat as it was trained.

    Attributes:
        messages: each with the keys that the template reads.
        text: what it is rendered to.
        ids: the tokens of that.
    """

    messages: Messages
    text: str
    ids: list[int]

    @property
    def is_plain(self) -> bool:
        """Whether the protocol can carry it: it has no place for a template's own keys."""
        return all(message.keys() == {"role", "content"} for message in self.messages)


def examine_server(
    server: Server,
    asked: Sequence[Asked],
    tokenizer: PreTrainedTokenizerBase,
    policy: ServedModel,
    *,
    max_difference: float,
) -> Iterator[Finding]:
    """Yield every finding about a server, from its prompts to its weights.

    Args:
        server: with its model chosen.
        asked: chats that training rendered; the last ones are prompts of the run.
        tokenizer: of the training.
        policy: the model of the run; its weights are loaded where they are first needed.
        max_difference: of log-probabilities, in the mean, in nats.
    """
    plain = [one for one in asked if one.is_plain]
    yield _renders(server, plain, tokenizer)
    policy.load(seed=0)
    try:
        pairs = _replies(server, plain, policy)
    except Refused as error:
        yield Finding("stops", "FAIL", f"the server refuses a prompt of the run: {error}")
        pairs = []
    else:
        yield _stops(pairs, policy)
    yield _scores(server, pairs, policy, max_difference)


def _renders(server: Server, asked: Sequence[Asked], tokenizer: PreTrainedTokenizerBase) -> Finding:
    num_exact = num_counted = 0
    for one in asked:
        try:
            ids = server.prompt_ids(one.messages)
            count = len(ids) if ids is not None else server.chat(one.messages, max_tokens=1).num_prompt_tokens
        except Refused as error:
            return Finding("renders", "FAIL", f"the server refuses {one.text!r}: {error}")
        if ids is not None and ids != one.ids:
            served = str(tokenizer.decode(ids))
            trained = str(tokenizer.decode(one.ids))
            detail = first_difference(served, trained) if served != trained else f"{ids} where training has {one.ids}"
            return Finding("renders", "FAIL", detail)
        if count not in (None, len(one.ids)):
            return Finding("renders", "FAIL", f"{one.text!r} is {len(one.ids)} tokens in training and {count} served")
        num_exact += ids is not None
        num_counted += ids is None and count is not None
    if num_exact:
        return Finding("renders", "ok", f"{num_exact} prompts have the tokens of the training")
    if num_counted:
        detail = f"{num_counted} prompts have as many tokens as in training; the server does not say which"
        return Finding("renders", "ok", detail)
    return Finding("renders", "-", "the server says nothing of the tokens of a prompt")


def _replies(server: Server, asked: Sequence[Asked], policy: ServedModel) -> list[tuple[Completion, Reply]]:
    """What the run answers with the likeliest tokens, each beside what the server does."""
    longest = num_positions(skeleton(policy.config).config)
    room = _SAMPLING.max_new_tokens + _FURTHER
    fit = [one for one in asked[-_NUM_REPLIES:] if longest is None or len(one.ids) + room <= longest]
    if not fit:
        return []
    own = policy.complete([one.ids for one in fit], _SAMPLING, seed=0, batch_size=_NUM_REPLIES)
    return [
        (completion, server.chat(one.messages, max_tokens=completion.num_tokens + _FURTHER))
        for one, completion in zip(fit, own, strict=True)
    ]


def _stops(pairs: Sequence[tuple[Completion, Reply]], policy: ServedModel) -> Finding:
    ends, num_ended, num_same = " or ".join(policy.template.stops), 0, 0
    controls = {*policy.template.stops, *policy.tokenizer.all_special_tokens}
    closed = [(completion, reply) for completion, reply in pairs if completion.end_id is not None]
    for completion, reply in closed:
        own = str(policy.tokenizer.decode(completion.token_ids, skip_special_tokens=True)).strip()
        shown = sorted(token for token in controls if token in reply.text and token not in own)
        if shown:
            return Finding("stops", "FAIL", f"{', '.join(shown)} is in the text of an answer: {reply.text!r}")
        is_longer = (reply.num_tokens or 0) > completion.num_tokens + 1 or reply.finish_reason == "length"
        if own and is_longer and reply.text.strip().startswith(own):
            return Finding("stops", "FAIL", f"it goes on where the run ends {own!r} with {ends}: {reply.text!r}")
        num_ended += reply.finish_reason == "stop"
        num_same += reply.text.strip() == own
    if num_ended:
        detail = f"{num_ended} of {len(closed)} answers end as the run ends them, with {ends}"
        return Finding("stops", "ok", f"{detail}; {num_same} are the same word for word")
    why = "the server answers with other words" if closed else f"no answer of the run ends in {_longest()}"
    return Finding("stops", "-", f"{why}: nothing to compare")


def _longest() -> str:
    return f"{_SAMPLING.max_new_tokens} tokens"


def _scores(
    server: Server, pairs: Sequence[tuple[Completion, Reply]], policy: ServedModel, max_difference: float
) -> Finding:
    rows = example_rows(policy)[:_NUM_REPLIES]
    served = [server.logprobs(row.input_ids) for row in rows]
    told = [(row, values) for row, values in zip(rows, served, strict=True) if values]
    if not told:
        return _scores_of_answers(pairs, policy, max_difference)
    differences = _differences(policy, told)
    finding = _judged(differences, max_difference, "of prompts and answers")
    if finding.verdict == "FAIL" and isinstance(policy.weights, PeftModel):
        with policy.weights.disable_adapter():
            if fmean(_differences(policy, told)) <= max_difference:
                return Finding("scores", "FAIL", f"{finding.detail}: the server has the base without the adapter")
    return finding


def _differences(policy: ServedModel, told: Sequence[tuple[Row, list[float]]]) -> list[float]:
    own = token_logprobs(policy.weights, [row for row, _ in told], pad_id=policy.pad_id, batch_size=_NUM_REPLIES)
    return [
        abs(mine - theirs)
        for values, (_, served) in zip(own, told, strict=True)
        for mine, theirs in zip(values.tolist(), served, strict=True)
    ]


def _scores_of_answers(
    pairs: Sequence[tuple[Completion, Reply]], policy: ServedModel, max_difference: float
) -> Finding:
    """Compare the tokens that both answered with: all that a server tells which scores no text that it is given."""
    differences = [
        abs(mine - theirs)
        for completion, reply in pairs
        if reply.text.strip() == str(policy.tokenizer.decode(completion.token_ids, skip_special_tokens=True)).strip()
        and completion.num_tokens <= len(reply.logprobs) <= len(completion.token_logprobs)
        for mine, theirs in zip(completion.token_logprobs, reply.logprobs, strict=False)
    ]
    if differences:
        return _judged(differences, max_difference, "of answers that both give")
    if any(reply.logprobs for _, reply in pairs):
        return Finding("scores", "FAIL", "the server answers every prompt with other words than the run")
    return Finding("scores", "-", "the server tells no log-probabilities")


def _judged(differences: Sequence[float], max_difference: float, what: str) -> Finding:
    mean = fmean(differences)
    detail = (
        f"log-probabilities of {len(differences):,} tokens {what} differ by {mean:.2e} nats in the mean, "
        f"{max(differences):.2e} at most (bound {max_difference:g} in the mean)"
    )
    return Finding("scores", "ok" if mean <= max_difference else "FAIL", detail)
