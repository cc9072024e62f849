"""What a server feeds a model, and where a row carries loss."""

import re
from typing import Any

from transformers import PreTrainedTokenizerFast

from alignkit.data.encode.masking import Encoding
from alignkit.data.rows.conversation import Conversation, Message


def as_dict(message: Message) -> dict[str, Any]:
    """A message as a server's client sends it; empty keys are left out."""
    reasoning = dict.fromkeys(["reasoning_content", "reasoning", "thinking"], message.reasoning)
    keys = {"tool_calls": list(message.tool_calls), "name": message.name, "tool_call_id": message.tool_call_id}
    return {
        "role": message.role,
        "content": message.content,
        **{key: value for key, value in {**reasoning, **keys}.items() if value},
    }


def served(tokenizer: PreTrainedTokenizerFast, conversation: Conversation, upto: int, **options: Any) -> Any:
    return tokenizer.apply_chat_template(
        [as_dict(message) for message in conversation.messages[:upto]],
        tools=list(conversation.tools) or None,
        return_dict=False,
        **conversation.template_kwargs,
        **options,
    )


def stretches(encoding: Encoding) -> list[tuple[int, int]]:
    """Where there is loss."""
    trained = "".join("x" if label != -100 else " " for label in encoding.labels)
    return [found.span() for found in re.finditer("x+", trained)]
