"""What a policy wrote, as rewards read it: in PPO, `compare` and `evaluate` the same."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from alignkit.config import SamplingConfig
from alignkit.data.encode.replies import ReplyForm, ReplyReader, call_text, reply_spec
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.sampling.generate import cut_at_stop


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion.

    Attributes:
        text: without special tokens: a policy must not be paid for their names. Reasoning that they alone set apart is
            between `<think>` and `</think>`.
        message: its reasoning, words and calls, where it has more than words.
    """

    text: str
    message: Message | None = None


class ReplyDecoder:
    """Reads the completions of one policy.

    Args:
        form: in which it replies.
        sampling: whose stop strings end a reply; None where there are none.
    """

    def __init__(self, form: ReplyForm, sampling: SamplingConfig | None = None) -> None:
        self._form, self._sampling, self._spec = form, sampling, reply_spec(form)
        self._names = [str(token) for token in form.tokenizer.added_tokens_decoder.values() if token.special]

    def read(self, asked: Conversation, prompt_ids: Sequence[int], ids: Sequence[int], end_id: int | None) -> Reply:
        """Read one completion.

        Args:
            asked: the prompt, with the tools that may be called.
            prompt_ids: as the policy was fed.
            ids: of the completion.
            end_id: what ended it, if it ended.
        """
        lead = self._form.template.response_lead
        text = self._cut(str(self._form.tokenizer.decode(list(ids), skip_special_tokens=True))).removeprefix(lead)
        if self._spec is None or asked.plain:
            return Reply(text)
        whole = self._cut(self._form.decode([*ids] if end_id is None else [*ids, end_id]))
        message = Message("assistant", whole)
        with suppress(ValueError):  # the form makes nothing of this prompt
            reader = ReplyReader(self._spec, self._form.decode(prompt_ids), asked.tools)
            reader.feed(whole)
            message, _ = reader.finish()
        if message.content == whole:
            return Reply(text)
        message = replace(message, content=self._bare(message.content), reasoning=self._bare(message.reasoning))
        if self._cut(self._form.decode(ids)).removeprefix(lead) != text:
            text = self._set_apart(message, text)
        return Reply(text, message if message.reasoning or message.tool_calls else None)

    def _cut(self, text: str) -> str:
        return text if self._sampling is None else cut_at_stop(text, self._sampling)

    def _bare(self, text: str) -> str:
        """A text without the names of special tokens, which a policy may have drawn anywhere."""
        for name in self._names:
            text = text.replace(name, "")
        return text

    def _set_apart(self, message: Message, text: str) -> str:
        """The text of a message whose parts special tokens set apart, so that `text` runs them together."""
        if (self._form.template.thought.closing.strip() or "</think>") in text:
            return text
        thought = f"<think>\n{message.reasoning.strip()}\n</think>\n\n" if message.reasoning else ""
        return thought + "\n".join([message.content, *map(call_text, message.tool_calls)])
