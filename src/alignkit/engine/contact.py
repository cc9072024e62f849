"""Whether servers are those that a job needs: all that can be asked before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from alignkit.data.encode.rendering import first_difference
from alignkit.engine.client import Refused, Unanswered
from alignkit.engine.vllm_server import Served, VllmServer
from alignkit.errors import ConfigError


@dataclass(frozen=True)
class Needed:
    """What a server must serve.

    Attributes:
        model: the base model, as a person names it.
        tokenizer: of the model.
        num_tokens: of its vocabulary: rows of its embeddings.
        texts: some prompts, rendered.
        longest: tokens of the longest prompt and its longest completion.
        adapters: adapters are handed over.
        folder: that the server must have read, where nothing else tells that it serves this model; None otherwise.
    """

    model: str
    tokenizer: PreTrainedTokenizerBase
    num_tokens: int
    texts: Sequence[str]
    longest: int
    adapters: bool
    folder: str | None = None


def contact(servers: Sequence[VllmServer], needed: Needed) -> list[Served]:
    """Ask each server what it is.

    Raises:
        ConfigError: one line for each that is not what is needed.
    """
    found, problems = [], []
    for server in servers:
        try:
            served = server.describe()
            problems += [f"engine.servers: {server.url} {line}" for line in _differences(server, served, needed)]
            found.append(served)
        except (Unanswered, Refused) as error:
            problems.append(f"engine.servers: {server.url} {error}")
    if problems:
        raise ConfigError(*problems)
    return found


def _differences(server: VllmServer, served: Served, needed: Needed) -> list[str]:
    lines = []
    if needed.folder is not None and not _is_same_model(served.root, needed.folder):
        lines.append(f"serves {served.root}, not {needed.folder}: start it with --model {needed.folder}")
    if served.max_length is not None and served.max_length < needed.longest:
        lines.append(
            f"takes {served.max_length} tokens, where a prompt with sampling.max_new_tokens has {needed.longest}: "
            f"start it with --max-model-len {needed.longest}, or shorten the one or the other"
        )
    if needed.adapters and not server.takes_adapters():
        lines.append(
            "loads no adapters while it runs: start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
        )
    return lines + _other_tokens(server, served, needed)


def _is_same_model(root: str, name: str) -> bool:
    """Whether a server read this model; on another machine its folder may lie elsewhere."""
    return root == name or Path(root).name == Path(name).resolve().name


def _other_tokens(server: VllmServer, served: Served, needed: Needed) -> list[str]:
    serves = f"serves {served.root}, whose"
    last = max(needed.num_tokens - 1, *needed.tokenizer.get_vocab().values())
    if not server.knows_token(last) or server.knows_token(last + 1):
        count = f"{needed.num_tokens:,} tokens"
        return [f"{serves} vocabulary is not that of {needed.model}, {count}: it is another model"]
    for text in needed.texts:
        own = needed.tokenizer.encode(text, add_special_tokens=False)
        if (theirs := server.tokens_of(text)) != own:
            here, there = (str(needed.tokenizer.convert_ids_to_tokens(ids)) for ids in (own, theirs))
            return [f"{serves} tokenizer is not that of {needed.model}: {first_difference(there, here)}"]
    return []
