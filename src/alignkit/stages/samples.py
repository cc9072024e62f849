"""A few answers of the model before and after training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from alignkit.choices import ControlTokens, TrainOn
from alignkit.config import SamplingConfig
from alignkit.data.encode.masking import EncodeRules, encode_prompt
from alignkit.data.encode.templates import Template
from alignkit.data.rows.conversation import Conversation
from alignkit.jobs import PolicyJob
from alignkit.models.load import num_positions
from alignkit.sampling.generate import cut_at_stop, generate
from alignkit.sampling.settings import check_sampling, stop_ids
from alignkit.training.sharding import is_sharded

logger = logging.getLogger(__name__)

_TOGETHER = 32  # samples answered at once


def check_samples(samples: int, sampling: SamplingConfig) -> list[str]:
    """List what is wrong with `sampling`, one line each; settings without an effect, as with samples=0, too."""
    problems = check_sampling(sampling)
    if samples == 0:
        default = SamplingConfig(max_new_tokens=sampling.max_new_tokens)  # it differs between the stages
        given = [item.name for item in fields(sampling) if getattr(sampling, item.name) != getattr(default, item.name)]
        problems += [
            f"sampling.{name} has no effect with samples=0: leave it out, or ask for samples" for name in given
        ]
    return problems


def leave_out_unanswerable(
    examples: Sequence[Conversation],
    config: PreTrainedConfig,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    job: PolicyJob,
) -> list[Conversation]:
    """Keep the rows whose prompt the model can answer: a sample is a glance, and must not end a training.

    Args:
        examples: rows of the data.
        config: of the model.
        template: bound to the tokenizer.
        tokenizer: of the model.
        job: of the stage.

    Returns:
        The rows with a prompt that has tokens and leaves positions for `sampling.max_new_tokens`; a line says how many
        are left out.
    """
    longest = num_positions(config)
    room = None if longest is None else longest - job.sampling.max_new_tokens
    lengths = [len(_prompt_ids(row, template, tokenizer, job)) for row in examples]
    kept = [row for row, num in zip(examples, lengths, strict=True) if num and (room is None or num <= room)]
    if len(kept) < len(examples):
        logger.warning(
            "%d of %d samples are left out: with sampling.max_new_tokens=%d their prompts do not fit the %s positions "
            "of the model; a lower sampling.max_new_tokens makes room",
            len(examples) - len(kept),
            len(examples),
            job.sampling.max_new_tokens,
            f"{longest:,}" if longest is not None else "",
        )
    return kept


def _prompt_ids(row: Conversation, template: Template, tokenizer: PreTrainedTokenizerBase, job: PolicyJob) -> list[int]:
    rules = EncodeRules(TrainOn.assistant, ControlTokens.neutralise, job.data.tools, job.data.reasoning)
    return encode_prompt(row.prompt(), template, tokenizer, rules)


def answer_samples(
    trainer: Any,
    examples: Sequence[Conversation],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    job: PolicyJob,
) -> list[str]:
    """Answer the prompts of a few rows with the model as it is now.

    Args:
        trainer: of the model.
        examples: rows of the data; each is answered up to its last message.
        template: bound to the tokenizer.
        tokenizer: of the model.
        job: of the stage: the forms of tools and reasoning, and how the answers are drawn.

    Returns:
        One text for each row; none where the weights are spread over processes, and on all but the main process.
    """
    if is_sharded(trainer) or not trainer.is_world_process_zero() or not examples:
        return []
    model = trainer.accelerator.unwrap_model(trainer.model)
    completions = generate(
        model,
        [_prompt_ids(row, template, tokenizer, job) for row in examples],
        job.sampling,
        eos_ids=stop_ids(model, template.stop_ids),
        pad_id=int(tokenizer.pad_token_id),
        seed=job.seed,
        batch_size=_TOGETHER,
        decode=lambda ids: str(tokenizer.decode(ids)),
    )
    texts = [str(tokenizer.decode(done.token_ids)).removeprefix(template.response_lead) for done in completions]
    return [cut_at_stop(text, job.sampling) for text in texts]


def before_and_after(
    examples: Sequence[Conversation], before: Sequence[str], after: Sequence[str]
) -> list[dict[str, str]]:
    """Put the lines of `samples.jsonl` together: each prompt with the response of the data, and both answers."""
    return [
        {"prompt": _question(row.prompt()), "wanted": row.messages[-1].content, "before": was, "after": now}
        for row, was, now in zip(examples, before, after, strict=False)
    ]


def _question(row: Conversation) -> str:
    last = row.messages[-1]
    return f"{last.content}\n{last.input}" if last.input else last.content
