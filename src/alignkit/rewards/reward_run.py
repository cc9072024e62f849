"""A reward that is a run of `alignkit reward`, which reads with its own tokenizer and template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from alignkit.choices import ControlTokens, OnError, ReasoningForm, ToolsForm, TrainOn
from alignkit.config import ModelConfig, TemplateConfig
from alignkit.data.encode.masking import EncodeRules, Encoding, RowRefused, encode_rows
from alignkit.data.encode.templates import Template, load_template
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import AlignkitError, RewardError
from alignkit.json_files import get, read_object
from alignkit.models.load import check_model, load_tokenizer, num_positions
from alignkit.models.reward import HEADS, SCORES, load_reward, reward_tokenizer, score_statistics, scores_of
from alignkit.models.source import ADAPTER_WEIGHTS, ModelSource, near_models, weight_shapes
from alignkit.rewards.backbone import Backbone, add_reward_adapter
from alignkit.rewards.sample import Sample
from alignkit.rewards.source import RewardSource
from alignkit.runs.manifest import run_time
from alignkit.runs.result import check_results
from alignkit.runs.template import run_forms, with_run_kwargs

_NATIVE = TemplateConfig(name="native")  # the one it was trained with is stored in its tokenizer


def check_reward_run(source: RewardSource) -> list[str]:
    """Find what is wrong with a reward run, one line each; its weights are not read."""
    name, setting = source.name, source.setting_of("model")
    model = ModelSource.of(ModelConfig(name))
    if model.folder is None:
        spelling = f"--reward {name}#LABEL" if source.is_option else f"{{classifier: {name}, label: LABEL}}"
        near = near_models(name) or f"; a classifier is named with its label: {spelling}"
        return [f"{setting}: there is no run directory {name}{near}"]
    try:
        check_model(model.config, wants_reward=True)
    except AlignkitError as error:
        return [problem.replace("model.name", setting, 1) for problem in error.problems]
    labels = _labels(model)
    if len(labels) == 1:
        unkept = source.standardise and not (model.folder / SCORES).is_file()
        why = "it kept no held-out scores, because its data section held no pairs out; leave it out"
        return [f"{source.setting_of('standardise')} has no effect on {name}: {why}"] if unkept else []
    known = ", ".join(labels)
    way_out = (
        f"as a classifier it takes a label, {name}#{labels[0]}: it has {known}"
        if source.is_option
        else f"take it as a classifier and one of its labels, {known}"
    )
    return [f"{setting}: {name} has {len(labels)} outputs, a reward has one; {way_out}"]


def _labels(model: ModelSource) -> list[str]:
    folder = model.folder
    assert folder is not None
    if not model.is_adapter:
        path = folder / "config.json"
        config = {"id2label": {0: "LABEL_0"}} | read_object(path)
        return list(map(str, get(config, "id2label", dict, path).values()))
    heads = [shape for key, shape in weight_shapes(folder / ADAPTER_WEIGHTS).items() if key.endswith(HEADS)]
    return [f"LABEL_{output}" for output in range(heads[0][0] if heads else 1)]


class RewardRun:
    """A reward model and how it reads; its weights are only in memory after `load` or `share`.

    Attributes:
        source: the folder it is in.
        tokenizer: its own, with a pad token.
        template: its own, bound to the tokenizer.
        rules: how it reads: tools and reasoning in the forms of its training, and what a policy says is never a turn of
            its own making.
        is_shared: its weights are those of a policy, and an adapter.
    """

    def __init__(self, model: ModelConfig, template: TemplateConfig = _NATIVE) -> None:
        """Everything but the weights of the run that `model` names (`check_model` has passed)."""
        self.source = ModelSource.of(model)
        check_results(self.source.folder, self.source.base.folder)
        tokenizer = load_tokenizer(model)
        template = with_run_kwargs(template, self.source.folder)
        self.template = load_template(template, tokenizer, now=run_time(self.source.folder))
        forms = run_forms(self.source.folder) or (ToolsForm.native, ReasoningForm.native)
        self.rules = EncodeRules(TrainOn.last_turn, ControlTokens.neutralise, *forms)
        self.tokenizer = reward_tokenizer(tokenizer, end_id=self.template.end_id)
        self._model: Any = None
        self.is_shared = False
        self._pad_id = int(self.tokenizer.pad_token_id or 0)
        self._computing: Callable[[], AbstractContextManager[None]] = nullcontext

    def load(self, device: torch.device) -> RewardRun:
        """Bring the weights to where they compute; none of them trains."""
        self._model = load_reward(self.source.config, self.tokenizer).requires_grad_(False)
        torch.nn.Module.to(self._model, device)
        return self

    def share(self, backbone: Backbone, name: str, *, device: torch.device) -> RewardRun:
        """Sit on the backbone of a policy as one more adapter, by this name (see `backbone.add_reward_adapter`)."""
        assert self.source.folder is not None
        self._model = add_reward_adapter(backbone, self.source.folder, name, device=device)
        # Its tokenizer's own may be the one id too many for this vocabulary; what fills up a row is never looked at.
        self._pad_id = 0
        self._computing = partial(backbone.adapters.computing, name)
        self.is_shared = True
        return self

    @property
    def num_positions(self) -> int | None:
        """The longest row it can read, in tokens; None where it sets no limit."""
        return num_positions(self._model.config)

    def scores(
        self, rows: Sequence[Sequence[int]], *, batch_size: int, on_progress: Callable[[int], None] | None = None
    ) -> list[float]:
        """The scores of token rows (see `scores_of`)."""
        with self._computing():
            return scores_of(self._model, rows, pad_id=self._pad_id, batch_size=batch_size, on_progress=on_progress)


class RewardRunScorer:
    """Scores samples as a reward run was trained to read them.

    Attributes:
        held: where its weights are, in words.
        num_cut: completions that were longer than it can read and lost the start of their prompt.
    """

    def __init__(self, source: RewardSource, run: RewardRun, held: str) -> None:
        """Of a run whose weights are in memory."""
        self.source, self.run, self.held, self.num_cut = source, run, held, 0
        folder = run.source.folder
        assert folder is not None
        mean, std = score_statistics(folder) if source.standardise else (0.0, 1.0)
        self.mean, self.std = mean, max(std, 1e-6)

    @property
    def jinja(self) -> str:
        """The template it reads in."""
        return self.run.template.jinja

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        """One score for each sample, read at the end of its answer.

        Raises:
            RewardError: its template refuses samples, one line each, and `on_error` is stop.
        """
        encodings = self._encode(samples)
        refused = [
            f"{self.source.setting}: {self.source.name} cannot read {sample}: its template refuses it: {row.reason}"
            for sample, row in zip(samples, encodings, strict=True)
            if isinstance(row, RowRefused)
        ]
        if refused and self.source.on_error is OnError.stop:
            raise RewardError(*refused)
        indices = [index for index, row in enumerate(encodings) if isinstance(row, list)]
        rows = [self._until_end(row[-1]) for row in encodings if isinstance(row, list)]
        scores: list[float | None] = [None] * len(samples)
        for index, score in zip(indices, self.run.scores(rows, batch_size=self.source.batch_size), strict=True):
            scores[index] = (score - self.mean) / self.std
        return scores

    def _encode(self, samples: Sequence[Sample]) -> list[list[Encoding] | RowRefused]:
        """Encode prompts with their answers; where the template has no place for parts of one, all of it is words."""
        found = self._encode_rows([_with_reply(sample, self.run.template) for sample in samples])
        parts = [at for at, row in enumerate(found) if isinstance(row, RowRefused) and samples[at].reply is not None]
        as_words = self._encode_rows([_with_reply(replace(samples[at], reply=None), self.run.template) for at in parts])
        for at, row in zip(parts, as_words, strict=True):
            found[at] = row
        return found

    def _encode_rows(self, rows: Sequence[Conversation]) -> list[list[Encoding] | RowRefused]:
        return encode_rows(rows, self.run.template, self.run.tokenizer, self.run.rules)

    def _until_end(self, encoding: Encoding) -> list[int]:
        end = encoding.responses[-1][1] if encoding.responses else len(encoding.input_ids)
        ids: list[int] = encoding.input_ids[:end]
        longest = self.run.num_positions
        if longest is not None and len(ids) > longest:
            self.num_cut += 1
            ids = ids[len(ids) - longest :]
        return ids


def _with_reply(sample: Sample, template: Template) -> Conversation:
    prompt, completion = sample.conversation, sample.completion
    if prompt.plain:
        return Conversation((Message("assistant", prompt.messages[0].content + completion),), plain=True)
    if sample.reply is not None:
        return prompt.with_answer(sample.reply)
    thought = template.thought
    if thought.key and thought.closing.strip() in completion and thought.opening.strip() not in completion:
        completion = thought.opening + completion  # the prompt had opened the thought
    return prompt.with_answer(Message("assistant", completion))
