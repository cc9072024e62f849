"""A trained model behind the interface of the `lm-eval` harness; imports the harness, which is an extra."""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import GenerationConfig

from alignkit.evaluate.served_model import ServedModel
from alignkit.long_rope import turns_at
from alignkit.models.load import num_positions
from alignkit.sampling.padding import sees_left_padding
from alignkit.sampling.settings import stop_ids


class TrainedModel(HFLM):  # type: ignore[misc]  # lm-eval has no type annotations
    """A loaded model, prompted in the template of its training and stopped by its stop ids.

    Args:
        policy: loaded.
        batch_size: rows scored, or responses generated, together.

    Attributes:
        num_cut: prompts so far that lost their beginning, being longer than the model has positions for.
    """

    def __init__(self, policy: ServedModel, batch_size: int) -> None:
        self.template, self.num_cut = policy.template, 0
        policy.tokenizer.chat_template = policy.template.jinja
        # What a folder ships has lengths and temperatures of its own, which would win over those of the task.
        policy.weights.generation_config = GenerationConfig(
            eos_token_id=stop_ids(policy.weights, policy.template.stop_ids), pad_token_id=policy.pad_id
        )
        super().__init__(
            policy.weights,
            tokenizer=policy.tokenizer,
            # the harness pads in front of prompts that it generates from, and to them adds what was generated
            batch_size=1 if sees_left_padding(policy.weights) or turns_at(policy.weights.config) else batch_size,
            max_length=num_positions(policy.weights.config),
            add_bos_token=False,  # the template writes it where training had one
            chat_template_args=dict(policy.template.variables),
        )

    @property
    def eot_token_id(self) -> int:
        return self.template.end_id

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokenize prompt and answer apart, as training does; the harness would tokenize them as one text."""
        if not context.endswith(self.template.prompt_suffix):  # such as an answer that the task itself begins
            pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return pair
        return self.tok_encode(context), self.tok_encode(self.template.response_lead + continuation)

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **more: Any) -> Any:
        self.num_cut += sum(len(prompt) + len(answer) > self.max_length + 1 for _, prompt, answer in requests)
        return super()._loglikelihood_tokens(requests, *args, **more)

    def tok_batch_encode(self, strings: list[str], *, left_truncate_len: int | None = None, **more: Any) -> Any:
        if left_truncate_len is not None:
            self.num_cut += sum(len(self.tok_encode(text)) > left_truncate_len for text in strings)
        return super().tok_batch_encode(strings, left_truncate_len=left_truncate_len, **more)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        responses: list[str] = super().generate_until(requests, disable_tqdm)
        return [text.removeprefix(self.template.response_lead) for text in responses]
