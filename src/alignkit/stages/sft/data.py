"""The rows that SFT trains on, and how `alignkit inspect` shows them; training starts from the very same."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from alignkit.choices import Batching
from alignkit.data.encode.templates import Template, load_template
from alignkit.data.sets.items import NUM_FIRST
from alignkit.data.sets.loaded import load_on_main_process
from alignkit.data.sets.sft import SftData, SftSet, load_sft
from alignkit.data.sets.streaming import Stream
from alignkit.data.views.supervised import SftView
from alignkit.data.views.view import title
from alignkit.jobs import SftJob
from alignkit.models.load import load_tokenizer, longest_row
from alignkit.models.lora import check_lora
from alignkit.models.skeleton import skeleton
from alignkit.runs.log import run_log
from alignkit.stages.opening import over_budget
from alignkit.stages.sft.batches import build_collator, describe_padding, expected_layout, padding_of
from alignkit.stages.sft.check import check_job

_KEEPS_HISTORY = {"preserve_thinking": True, "truncate_history_thinking": False}  # Qwen3.6, LFM2.5; Nemotron
FIRST_ROWS = f"only the first {NUM_FIRST:,} rows of each source were read for these figures"


@dataclass
class Prepared:
    """What `view` shows and training starts from.

    Attributes:
        tokenizer: of the model.
        template: bound to it.
        data: the encoded rows, and what became of the others.
        attention: the implementation the model will use.
        longest_row: tokens in the longest row, or those it may have where rows are read as training goes.
        stream: the training rows, where they are read as training goes; `data` has the first of them.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    data: SftData
    attention: str
    longest_row: int
    stream: Stream | None = None


def prepare(job: SftJob, run_dir: Path | None = None, *, now: datetime | None = None) -> Prepared:
    """Read, render and encode the rows, without loading weights.

    Args:
        job: settings that `check_job` passed.
        run_dir: where several processes exchange the encoded rows; None with one process.
        now: what a template that asks for the date sees; None leaves it the clock.
    """
    tokenizer = load_tokenizer(job.model)
    template = load_template(job.template, tokenizer, now=now)
    bare = skeleton(job.model)
    if job.lora:
        check_lora(job.lora, bare)
    max_length = longest_row(job.data.max_length, bare.config)
    load = partial(
        load_sft, job.data, template, tokenizer, max_length=max_length, seed=job.seed, num_examples=job.samples
    )
    data = load() if run_dir is None else load_on_main_process(load, run_dir / ".encoded", SftData)
    stream = Stream(job.data, template, tokenizer, max_length=max_length, seed=job.seed) if job.data.streaming else None
    attention = job.model.attn_implementation or bare.config._attn_implementation
    longest = max_length if stream else max(length for rows in data.sets.values() for length in rows.lengths)
    return Prepared(tokenizer, template, data, attention, longest, stream)


def parts_cost(rows: SftSet, template: Template) -> list[str]:
    """Say in a line what it costs that rows are kept in parts, and the way to one part, if the template has it."""
    parts = rows.in_parts()
    if not parts.num_supervised:
        return []
    num_rows = sum(number == 1 for number in parts.dataset["part"])
    read = sum(parts.lengths) / parts.num_supervised
    unset = [(name, value) for name, value in _KEEPS_HISTORY.items() if template.variables.get(name) != value]
    ways = [f"{name}: {str(value).lower()}" for name, value in unset if name in template.reads]
    way_out = f"; template.kwargs={{{', '.join(ways)}}} keeps history as it was, and a row in one part" if ways else ""
    of_rows = f"{num_rows:,} {'row' if num_rows == 1 else 'rows'}"
    return [
        f"{of_rows} in {len(parts.dataset):,} parts, because the template rewrites earlier turns: "
        f"{read:.1f} tokens read per token trained{way_out}"
    ]


def view(job: SftJob) -> SftView:
    """Prepare what `alignkit inspect sft` shows."""
    with run_log():
        check_job(job)
        prepared = prepare(over_budget(job))
    layout = expected_layout(job, prepared.attention)
    batch_size = int(job.train.get("per_device_train_batch_size", 8))
    rows_a_step = batch_size * int(job.train.get("gradient_accumulation_steps", 1))
    padding = padding_of(job, prepared.data.train, layout, batch_size=batch_size, rows_a_step=rows_a_step)
    return view_of(job, prepared, layout, f"batches of {batch_size} rows, {describe_padding(layout, padding)}")


def view_of(job: SftJob, prepared: Prepared, layout: Batching, batches: str) -> SftView:
    """Put together what is shown of the rows.

    Args:
        job: the settings.
        prepared: the rows.
        layout: of a batch.
        batches: that layout and its padding, in words.
    """
    return SftView(
        title=title("sft", job, prepared.template),
        template_kwargs=job.template.kwargs,
        sets=prepared.data.sets,
        ledger=prepared.data.ledger,
        collator=build_collator(prepared.tokenizer, layout, prepared.attention),
        batch_size=int(job.train.get("per_device_train_batch_size", 8)),
        tokenizer=prepared.tokenizer,
        max_dropped=job.data.max_dropped,
        facts=[
            *(source.line() for source in prepared.data.read),
            f"template {prepared.template.name}, a turn ends in {prepared.template.end_token}",
            *(f"parts: {cost}" for cost in parts_cost(prepared.data.train, prepared.template)),
            batches,
            *([f"streaming: {FIRST_ROWS}"] if job.data.streaming else []),
        ],
    )
