"""Servers that answer for a model, where the section `engine` asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from transformers import GenerationConfig

from alignkit.choices import EngineName
from alignkit.config import EngineConfig, SamplingConfig
from alignkit.engine.contact import Needed, contact
from alignkit.engine.handover import give_first
from alignkit.engine.probe import probe
from alignkit.engine.spread import Spread
from alignkit.engine.vllm_server import VllmServer
from alignkit.evaluate.answers import weights_mark
from alignkit.evaluate.served_model import ServedModel
from alignkit.models.skeleton import skeleton
from alignkit.models.source import ModelSource, hub_options
from alignkit.runs.console import SafeConsole
from alignkit.sampling.settings import stop_ids

_NUM_TEXTS = 3  # prompts whose tokens are compared
_MOST_APART = 0.05  # nats a token, in the mean, of a model that is loaded here too


@contextmanager
def answering(
    section: EngineConfig, model: ServedModel, rows: Sequence[Sequence[int]], sampling: SamplingConfig, *, seed: int
) -> Iterator[str]:
    """Let servers answer for a model while the block runs.

    An adapter is loaded on the servers, and taken away at the end. A model whose weights are loaded is held against
    what the servers draw; of another one the servers must have read the folder.

    Args:
        section: `engine`, which `check_engine` has passed.
        model: to answer for.
        rows: its prompts.
        sampling: how they are answered.
        seed: of every draw.

    Yields:
        What answers, for a record; empty for the model itself.

    Raises:
        ConfigError: one line for each server that is not what is needed.
    """
    if section.name is EngineName.local or not rows:
        yield ""
        return
    bare: Any = skeleton(model.config)
    source, num_tokens = ModelSource.of(model.config), len(bare.get_input_embeddings().weight)
    base = str(source.base.location)
    needed = Needed(
        model=base,
        tokenizer=model.tokenizer,
        num_tokens=num_tokens,
        texts=[model.decode(ids) for ids in rows[:_NUM_TEXTS]],
        longest=max(map(len, rows)) + sampling.max_new_tokens,
        adapters=source.is_adapter,
        folder=base,
    )
    servers = [VllmServer(url, timeout=section.timeout) for url in section.servers]
    served = contact(servers, needed)
    eos_ids = _end_ids(bare, source, model.template.stop_ids)
    spread = Spread(servers, eos_ids=eos_ids, num_tokens=num_tokens, seed=seed)
    if source.is_adapter:
        assert source.folder is not None
        folder = source.folder.resolve()
        name = f"{folder.name}-{weights_mark(str(folder))}"
        give_first(servers, name, folder)
        spread.load(name, folder)
    model.engine = spread
    try:
        if model.model is not None:
            probe(
                servers,
                model.model,
                rows,
                [sampling],
                eos_ids=eos_ids,
                num_tokens=num_tokens,
                max_difference=_MOST_APART,
            )
        said = f"vLLM {served[0].version}"
        where = ", ".join(section.servers)
        SafeConsole(stderr=True).print(
            f"{model.name} is answered for by {said} at {where}", markup=False, highlight=False
        )
        yield said
    finally:
        model.engine = None
        spread.close()


def _end_ids(bare: Any, source: ModelSource, of_template: Sequence[int]) -> list[int]:
    """The tokens at which the model stops where it is loaded: its generation config may name more than its config."""
    with suppress(OSError):
        bare.generation_config = GenerationConfig.from_pretrained(source.base.location, **hub_options(source.base))
    return stop_ids(bare, of_template)
