"""A reward that is the score of one label of a text classifier, such as POSITIVE of a sentiment model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from alignkit.errors import RewardError, did_you_mean
from alignkit.long_rope import encode_each_row_alone
from alignkit.rewards.sample import Sample
from alignkit.rewards.source import RewardSource

_LONGEST = 512  # tokens, where the tokenizer does not say


def check_classifier(source: RewardSource) -> list[str]:
    """Find what is wrong with a classifier and its label, one line each; its weights are not read."""
    name, setting = source.name, source.setting_of("classifier")
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        return [f"{setting}: {name} cannot be read: {' '.join(str(error).split())[:200]}"]
    architectures = config.architectures or []
    if not any("SequenceClassification" in architecture for architecture in architectures):
        return [f"{setting}: {name} is a {', '.join(architectures) or config.model_type}, no text classifier"]
    if source.label in config.label2id:
        return []
    known = [str(known) for known in config.label2id]
    guess = did_you_mean(str(source.label), known)
    return [f"{source.setting_of('label')}: {name} has no label '{source.label}', it has {', '.join(known)}{guess}"]


class ClassifierScorer:
    """A text classifier and one of its labels.

    Attributes:
        num_cut: texts that were longer than it can read and lost their end.
    """

    def __init__(self, source: RewardSource, *, device: torch.device) -> None:
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source.name)
            loaded = AutoModelForSequenceClassification.from_pretrained(source.name, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise RewardError(f"{source.name} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
        self.model: Any = encode_each_row_alone(loaded).to(device).eval().requires_grad_(False)
        config = self.model.config
        self.label, self.batch_size = int(config.label2id[source.label]), source.batch_size
        self.as_logit = source.output == "logit"
        self.is_exclusive = config.num_labels > 1 and config.problem_type != "multi_label_classification"
        positions = getattr(config, "max_position_embeddings", _LONGEST) - self._first_position()
        self.max_length, self.num_cut = min(self.tokenizer.model_max_length, positions), 0
        # Behind a text it changes nothing, whatever the tokenizer says: in front of one it would move its positions.
        self.tokenizer.padding_side = "right"
        # A model that reads a text off its last token looks for the token of its own configuration.
        self.can_pad = self.tokenizer.pad_token_id is not None and self.tokenizer.pad_token_id == config.pad_token_id
        if not self.can_pad:
            self.batch_size = 1

    def _first_position(self) -> int:
        """Models like RoBERTa count positions from behind that of the padding token, and have so many fewer."""
        tables = (table for name, table in self.model.named_modules() if name.endswith("position_embeddings"))
        paddings = [table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None]
        return max(paddings, default=-1) + 1

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        """Return the label's probability (or logit) for each sample.

        A plain text is read with its beginning, an answer in a conversation alone. What is longer than the classifier
        can read loses its end.
        """
        texts = [
            sample.prompt + sample.completion if sample.conversation.plain else sample.completion for sample in samples
        ]
        cuts = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        return [score for cut in cuts for score in self._together(cut)]

    @torch.no_grad()
    def _together(self, texts: list[str]) -> list[float]:
        self.num_cut += sum(len(ids) > self.max_length for ids in self.tokenizer(texts, verbose=False)["input_ids"])
        batch = self.tokenizer(
            texts, padding=self.can_pad, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.model.device)
        logits_BC = self.model(**batch).logits.float()
        if not self.as_logit:
            logits_BC = logits_BC.softmax(-1) if self.is_exclusive else logits_BC.sigmoid()
        return list(logits_BC[:, self.label].tolist())
