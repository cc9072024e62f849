"""A reward that is a run of `alignkit reward`, in its own words: its tokenizer, its template, its score head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from alignkit.config import ControlTokens, ModelConfig, TemplateConfig, TrainOn
from alignkit.data.conversation import Conversation, Message
from alignkit.data.masking import Encoding, encode_rows
from alignkit.data.templates import load_template
from alignkit.errors import AlignkitError
from alignkit.models.load import check_model, load_tokenizer, num_positions
from alignkit.models.reward import load_reward, reward_tokenizer, scores_of
from alignkit.models.source import ADAPTER_WEIGHTS, is_adapter, local_folder

_NATIVE = TemplateConfig(name="native")  # the one it was trained with is stored in its tokenizer


def check_reward_run(name: str, place: str) -> list[str]:
    """What is wrong with a reward run, one line each; its weights are not read."""
    try:
        check_model(ModelConfig(name=name), wants_reward=True)
    except AlignkitError as error:
        return [problem.replace("model.name", f"{place}.model", 1) for problem in error.problems]
    folder = local_folder(name)
    num_outputs = 1 if folder is None else _num_outputs(folder)
    if num_outputs != 1:
        return [
            f"{place}.model: {name} has {num_outputs} outputs, a reward has one: take it as a classifier and a label"
        ]
    return []


def _num_outputs(folder: Path) -> int:
    if not is_adapter(folder):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return len(config.get("id2label", {0: ""}))
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        heads = [key for key in file.keys() if key.endswith(("score.weight", "classifier.weight"))]  # noqa: SIM118
        return int(file.get_slice(heads[0]).get_shape()[0]) if heads else 1


class RewardRun:
    """A reward model read as it was trained.

    Attributes:
        jinja: its template.
        num_cut: answers that were longer than it can read and lost the start of their prompt.
    """

    def __init__(self, name: str, *, standardise: bool, batch_size: int, device: torch.device) -> None:
        section = ModelConfig(name=name)
        tokenizer = load_tokenizer(section)
        self.template = load_template(_NATIVE, tokenizer)
        self.jinja = self.template.jinja
        self.tokenizer = reward_tokenizer(tokenizer, end_id=self.template.end_id)
        loaded, (mean, std) = load_reward(section, self.tokenizer)
        self.model: Any = loaded.requires_grad_(False)
        torch.nn.Module.to(self.model, device)
        self.mean, self.std = (mean, max(std, 1e-6)) if standardise else (0.0, 1.0)
        self.batch_size, self.num_cut = batch_size, 0
        self.max_length = num_positions(self.model.config)

    def score(self, samples: Sequence[Any]) -> list[float | None]:
        """One score for each sample, read at the end of its answer; None for an answer its template refuses."""
        encodings = encode_rows(
            [_answered(sample.prompt.conversation, sample.completion) for sample in samples],
            self.template,
            self.tokenizer,
            train_on=TrainOn.last_turn,
            control_tokens=ControlTokens.neutralise,  # what a policy says is never a turn of its own making
        )
        read = [place for place, encoding in enumerate(encodings) if isinstance(encoding, Encoding)]
        rows = [self._up_to_the_end(encodings[place]) for place in read]
        with torch.autocast(next(self.model.parameters()).device.type, enabled=False):
            found = scores_of(
                self.model, rows, pad_id=int(self.tokenizer.pad_token_id or 0), batch_size=self.batch_size
            )
        scores: list[float | None] = [None] * len(samples)
        for place, score in zip(read, found, strict=True):
            scores[place] = (score - self.mean) / self.std
        return scores

    def _up_to_the_end(self, encoding: Any) -> list[int]:
        end = encoding.responses[-1][1] if encoding.responses else len(encoding.input_ids)
        ids: list[int] = encoding.input_ids[:end]
        if self.max_length is not None and len(ids) > self.max_length:
            self.num_cut += 1
            ids = ids[len(ids) - self.max_length :]
        return ids


def _answered(asked: Conversation, completion: str) -> Conversation:
    if asked.plain:
        return Conversation((Message("assistant", asked.messages[0].content + completion),), plain=True)
    return Conversation((*asked.messages, Message("assistant", completion)))
