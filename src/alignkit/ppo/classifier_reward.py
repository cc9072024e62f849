"""A reward that is the score of one label of a text classifier, such as POSITIVE of a sentiment model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from alignkit.errors import RewardError, did_you_mean

_LONGEST = 512  # tokens, where the tokenizer does not say


def check_classifier(name: str, label: str | None, place: str) -> list[str]:
    """What is wrong with a classifier and its label, one line each; its weights are not read."""
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        return [f"{place}.classifier: {name} cannot be read: {' '.join(str(error).split())[:200]}"]
    architectures = config.architectures or []
    if not any("SequenceClassification" in architecture for architecture in architectures):
        return [f"{place}.classifier: {name} is a {', '.join(architectures) or config.model_type}, no text classifier"]
    if label not in config.label2id:
        known = [str(known) for known in config.label2id]
        return [
            f"{place}.label: {name} has no label '{label}', it has {', '.join(known)}{did_you_mean(str(label), known)}"
        ]
    return []


class Classifier:
    """A text classifier and one of its labels.

    Attributes:
        num_cut: texts that were longer than it can read and lost their end.
    """

    def __init__(self, name: str, label: str, *, as_logit: bool, device: torch.device) -> None:
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(name, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise RewardError(f"{name} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
        self.model.to(device).eval().requires_grad_(False)
        self.place, self.as_logit = int(self.model.config.label2id[label]), as_logit
        positions = getattr(self.model.config, "max_position_embeddings", _LONGEST)
        self.max_length, self.num_cut = min(self.tokenizer.model_max_length, positions), 0
        self.is_exclusive = (
            self.model.config.num_labels > 1 and self.model.config.problem_type != "multi_label_classification"
        )

    @torch.no_grad()
    def score(self, samples: Sequence[Any]) -> list[float | None]:
        """The label's probability (or logit) for each sample.

        A plain text is read with its beginning, an answer in a conversation alone. What is longer than the classifier
        can read loses its end.
        """
        texts = [
            sample.prompt.text + sample.completion if sample.prompt.conversation.plain else sample.completion
            for sample in samples
        ]
        self.num_cut += sum(len(ids) > self.max_length for ids in self.tokenizer(texts, verbose=False)["input_ids"])
        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.model.device)
        logits_BC = self.model(**batch).logits.float()
        if not self.as_logit:
            logits_BC = logits_BC.softmax(-1) if self.is_exclusive else logits_BC.sigmoid()
        return list(logits_BC[:, self.place].tolist())
