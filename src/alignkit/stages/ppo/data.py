"""What PPO's policy is asked: prompts, rendered and encoded before any weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from alignkit.data.encode.templates import Template, load_template
from alignkit.data.sets.prompts import PromptData, load_prompts
from alignkit.data.views.prompts import PromptView
from alignkit.data.views.view import title
from alignkit.errors import ConfigError
from alignkit.jobs import PpoJob
from alignkit.models.load import load_tokenizer, num_positions
from alignkit.models.lora import check_lora
from alignkit.models.reference import reference_section
from alignkit.models.skeleton import skeleton
from alignkit.ppo.value_init import check_value_start
from alignkit.rewards.load import check_reward_answers, check_reward_columns
from alignkit.rewards.source import parse_rewards
from alignkit.runs.log import run_log
from alignkit.stages.opening import over_budget
from alignkit.stages.ppo.check import check_job

_LONGEST_BY_DEFAULT = 2048  # tokens of a prompt, where the model sets no limit


@dataclass
class Prepared:
    """What training starts from.

    Attributes:
        tokenizer: of the policy.
        template: bound to it.
        data: the prompts, and what became of the other rows.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    data: PromptData


def prepare(job: PpoJob, *, now: datetime | None = None) -> Prepared:
    """Read, render and encode the prompts, without loading weights.

    Raises:
        AlignkitError: settings that do not fit the model or the rows, or rows that cannot be asked.
    """
    tokenizer = load_tokenizer(job.model)
    template = load_template(job.template, tokenizer, now=now)
    bare = skeleton(job.model)
    if job.lora:
        check_lora(job.lora, bare)
    if job.value.start is not None and (problems := check_value_start(job.value, job.model, job.lora)):
        raise ConfigError(*problems)
    whose, positions = _fewest_positions(job, num_positions(bare.config))
    longest = _LONGEST_BY_DEFAULT if positions is None else positions - job.sampling.max_new_tokens
    if longest < 1:
        raise ConfigError(
            f"sampling.max_new_tokens={job.sampling.max_new_tokens} leaves no room for a prompt: {whose} has "
            f"{positions} positions"
        )
    if job.data.max_length is not None and positions is not None and job.data.max_length > longest:
        raise ConfigError(
            f"data.max_length={job.data.max_length} with sampling.max_new_tokens={job.sampling.max_new_tokens} is more "
            f"than {whose}'s {positions} positions: shorten the one or the other"
        )
    max_length = job.data.max_length or min(longest, _LONGEST_BY_DEFAULT)
    data = load_prompts(job.data, template, tokenizer, max_length=max_length, seed=job.seed)
    columns = dict.fromkeys(key for prompt in data.train for key in prompt.columns)
    rewards = parse_rewards(job.reward)
    check_reward_columns(rewards, list(columns))
    check_reward_answers(rewards, [(prompt.source, prompt.columns) for prompt in data.train + data.held_out])
    return Prepared(tokenizer, template, data)


def _fewest_positions(job: PpoJob, own: int | None) -> tuple[str, int | None]:
    """Policy or reference, whichever reads the shorter texts, and how many tokens it has positions for."""
    if job.reference.name is not None:
        theirs = num_positions(skeleton(reference_section(job.reference.name, job.model)).config)
        if theirs is not None and (own is None or theirs < own):
            return f"the reference {job.reference.name}", theirs
    return "the model", own


def view(job: PpoJob) -> PromptView:
    """Prepare what `alignkit inspect ppo` shows."""
    with run_log():
        check_job(job)
        return view_of(job, prepare(over_budget(job)))


def view_of(job: PpoJob, prepared: Prepared) -> PromptView:
    """Put together what is shown of the prompts."""
    data, length, ppo = prepared.data, job.data.prompt_length, job.ppo
    times = ppo.num_updates * ppo.num_prompts / len(data.train)
    return PromptView(
        title=title("ppo", job, prepared.template),
        template_kwargs=job.template.kwargs,
        sets={"train": data.train, **({"eval": data.held_out} if data.held_out else {})},
        ledger=data.ledger,
        tokenizer=prepared.tokenizer,
        max_dropped=job.data.max_dropped,
        facts=[
            *(source.line(as_prompts=True) for source in data.read),
            f"template {prepared.template.name}, a turn ends in {prepared.template.end_token}",
            *([f"texts are cut to their first {length.min} to {length.max} tokens"] if length.max else []),
            f"{ppo.num_updates:,} updates of {ppo.num_prompts:,} prompts ask each of them {times:,.1f} times",
        ],
    )
