"""What the folder of a reward run says of itself: how transformers alone gives the scores that alignkit gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEADING = "# A reward model"
_README = """{heading}

It scores a conversation at the token that ends its last answer, `{end}`. What the chat template writes after that token
was never scored in training: cut it off. `alignkit score` does that, and so do these lines, where `folder` is this one
and `messages` ends in the answer of the assistant:

```python
from {package} import {auto_class}
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto_class}.from_pretrained(folder, num_labels=1, dtype="float32").eval()
model.config.pad_token_id = tokenizer.pad_token_id
text = tokenizer.apply_chat_template(messages, tokenize=False{arguments})
text = text[: text.rindex({end!r}) + {length}]
score = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits.item()
```
"""


def write_reward_readme(folder: Path, *, end_token: str, kwargs: Mapping[str, Any], is_adapter: bool) -> None:
    """Write README.md into the folder of a reward run; arguments as in `reward_readme`."""
    text = reward_readme(end_token=end_token, kwargs=kwargs, is_adapter=is_adapter)
    (folder / "README.md").write_text(text, encoding="utf-8")


def reward_readme(*, end_token: str, kwargs: Mapping[str, Any], is_adapter: bool) -> str:
    """Say how transformers alone gives the scores of a reward run, in Markdown that begins with `HEADING`.

    Args:
        end_token: what every answer ends in.
        kwargs: arguments of the chat template.
        is_adapter: the weights are an adapter on a base.
    """
    return _README.format(
        heading=HEADING,
        end=end_token,
        length=len(end_token),
        arguments="".join(f", {key}={value!r}" for key, value in kwargs.items()),
        package="peft" if is_adapter else "transformers",
        auto_class=f"Auto{'Peft' if is_adapter else ''}ModelForSequenceClassification",
    )
