"""A model as it is served: weights, tokenizer, template and stop ids, as they were in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.choices import ControlTokens, Quantization, ReasoningForm, ToolsForm, TrainOn
from alignkit.config import FormsConfig, ModelConfig, SamplingConfig, TemplateConfig
from alignkit.data.encode.masking import EncodeRules, RowRefused, encode_prompts
from alignkit.data.encode.replies import ReplyForm
from alignkit.data.encode.templates import Template, load_template
from alignkit.engine.request import Request
from alignkit.engine.spread import Spread
from alignkit.errors import ConfigError, DataError
from alignkit.evaluate.prompts import Prompts
from alignkit.models.load import load_model, load_tokenizer, num_positions
from alignkit.models.skeleton import skeleton
from alignkit.models.source import ModelSource
from alignkit.runs.manifest import run_time
from alignkit.runs.result import check_results
from alignkit.runs.template import run_forms, with_run_kwargs
from alignkit.sampling.generate import Completion, cut_at_stop, generate
from alignkit.sampling.settings import stop_ids


@dataclass
class ServedModel:
    """A model with its tokenizer and template; its weights are only in memory between `load` and `unload`.

    Attributes:
        config: the section `model`.
        tokenizer: of the model.
        template: bound to it.
        rules: how prompts are encoded: with tools and reasoning in the forms of the training.
        model: the weights; None if they are not loaded.
        engine: servers that answer in its place; None where it answers itself.
    """

    config: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    template: Template
    rules: EncodeRules = EncodeRules(control_tokens=ControlTokens.neutralise)
    model: PreTrainedModel | None = field(default=None, repr=False)
    engine: Spread | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        template: TemplateConfig,
        *,
        forms: tuple[ToolsForm, ReasoningForm] = (ToolsForm.native, ReasoningForm.native),
        chosen: FormsConfig | None = None,
        check: bool = True,
        now: datetime | None = None,
    ) -> ServedModel:
        """Load everything but the weights.

        Args:
            config: the section of the model.
            template: the section; a run's own has the arguments of the run, and if it asks for the date sees its.
            forms: of tools and reasoning, where it is no run; a run has its own.
            chosen: forms to take instead of both, where they are not null.
            check: refuse a run that is not as it was written.
            now: see this date instead.

        Raises:
            RunError: it is a run, and not finished, or not as it was written.
        """
        source = ModelSource.of(config)
        if check:
            check_results(source.folder, source.base.folder)
        tokenizer = load_tokenizer(config)
        template = with_run_kwargs(template, source.folder)
        bound = load_template(template, tokenizer, now=now or run_time(source.folder))
        tools, reasoning = run_forms(source.folder) or forms
        if chosen is not None:
            tools, reasoning = chosen.tools or tools, chosen.reasoning or reasoning
        rules = EncodeRules(TrainOn.assistant, ControlTokens.neutralise, tools, reasoning)
        return cls(config, tokenizer, bound, rules)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    @property
    def reply_form(self) -> ReplyForm:
        return ReplyForm(self.template, self.tokenizer, self.rules)

    @property
    def weights(self) -> PreTrainedModel:
        assert self.model is not None, "not loaded"
        return self.model

    def load(self, *, seed: int) -> ServedModel:
        """Load the weights onto the device that this machine computes with."""
        self.model = load_model(self.config, tokenizer=self.tokenizer, seed=seed, trainable=False)
        quantized = self.config.quantization is not Quantization.none  # then they are there already
        if torch.accelerator.is_available() and not quantized:
            torch.nn.Module.to(self.model, torch.accelerator.current_accelerator())
        return self

    def unload(self) -> None:
        self.model = None

    def encode(self, prompts: Prompts) -> list[list[int]]:
        """Encode prompts into the tokens that training has before the answer; special tokens in them are plain text.

        Raises:
            DataError: one line for each prompt that the template refuses.
        """
        conversations = [prompt for _, prompt in prompts]
        rows = encode_prompts(conversations, self.template, self.tokenizer, self.rules)
        refused = [
            f"{source}: {ids.reason}"
            for (source, _), ids in zip(prompts, rows, strict=True)
            if isinstance(ids, RowRefused)
        ]
        if refused:
            raise DataError(*refused)
        return [ids for ids in rows if not isinstance(ids, RowRefused)]

    def check_lengths(self, prompts: Prompts, rows: Sequence[Sequence[int]], sampling: SamplingConfig) -> None:
        """Check that the model has positions for every prompt and its longest answer, without loading weights.

        Raises:
            DataError: one line for each prompt that is too long.
        """
        longest = num_positions(skeleton(self.config).config)
        problems = [
            f"{source}: {len(ids)} tokens, which with sampling.max_new_tokens={sampling.max_new_tokens} is more than "
            f"the model's {longest} positions: shorten the one or the other"
            for (source, _), ids in zip(prompts, rows, strict=True)
            if longest is not None and len(ids) + sampling.max_new_tokens > longest
        ]
        if problems:
            raise DataError(*problems)

    def complete(
        self,
        rows: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        seed: int,
        batch_size: int,
        keys: Sequence[int | str] | None = None,
        on_progress: Callable[[int], None] | None = None,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """Complete encoded prompts (see `sampling.generate`).

        Log-probabilities of servers are of the distribution that they draw from.
        """
        if self.engine is not None:
            groups = {prompt: number for number, prompt in enumerate(dict.fromkeys(map(tuple, rows)))}
            names = range(len(rows)) if keys is None else keys
            requests = [Request(ids, str(key), groups[tuple(ids)]) for ids, key in zip(rows, names, strict=True)]
            return self.engine.complete(requests, sampling, on_progress=on_progress)
        return generate(
            self.weights,
            rows,
            sampling,
            eos_ids=stop_ids(self.weights, self.template.stop_ids),
            pad_id=self.pad_id,
            seed=seed,
            batch_size=batch_size,
            keys=keys,
            decode=self.decode,
            on_progress=on_progress,
            on_token=on_token,
        )

    def text(self, completion: Completion, sampling: SamplingConfig) -> str:
        """Decode a response: without what the template begins every answer with, and cut before a stop string."""
        text = self.decode(completion.token_ids).removeprefix(self.template.response_lead)
        return cut_at_stop(text, sampling)

    def reply(self, completion: Completion, sampling: SamplingConfig) -> str:
        """Decode all that the model wrote, its end token included, cut before a stop string."""
        return cut_at_stop(self.decode(response_ids(completion)), sampling)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))


def sample_keys(num_prompts: int, num_samples: int) -> list[int | str]:
    """Name the samples of each prompt, prompt by prompt; the first has the name that it has when it is the only one."""
    return [row if sample == 0 else f"{row}.{sample}" for row in range(num_prompts) for sample in range(num_samples)]


def response_ids(completion: Completion) -> list[int]:
    """List the tokens of a response, its end token included."""
    return completion.token_ids + ([] if completion.end_id is None else [completion.end_id])


def check_same_tokens(models: Sequence[ServedModel], encoded: Sequence[list[list[int]]], setting: str) -> None:
    """Refuse models whose log-probabilities are of other tokens, or of tokens after another prompt.

    Raises:
        ConfigError: one line for each model that differs from the first.
    """
    first, *others = models
    vocabulary = first.tokenizer.get_vocab()
    problems = []
    for model, rows in zip(others, encoded[1:], strict=True):
        if model.tokenizer.get_vocab() != vocabulary:
            problems.append(
                f"{setting}: {first.name} and {model.name} have different tokenizers, so the log-probabilities of "
                "their tokens cannot be compared: leave it out"
            )
        elif rows != encoded[0] or model.template.stop_ids != first.template.stop_ids:
            problems.append(
                f"{setting}: {first.name} and {model.name} were trained with different templates, so the same "
                "response follows other tokens: leave it out, or choose one template"
            )
    if problems:
        raise ConfigError(*problems)
