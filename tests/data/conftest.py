"""Tokenizers that differ in what breaks masks: bytes, merges with eos as bos and no pad, a bos by default."""

import os
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from alignkit.models.tiny import byte_tokenizer

SENTENCES = [
    "### Instruction:\nName the capital of France.\n\n### Response:\nThe capital of France is Paris.",
    "Human: What is the answer?\n\nAssistant: The answer is the response to the question.",
    "The quick brown fox jumps over the lazy dog, and the dog does not answer the question.\n\n",
    "Blank lines at an end become one token.\n\n",
]


def with_merges(special: list[str], **roles: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    core.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **roles)


def gpt2_style() -> PreTrainedTokenizerFast:
    return with_merges(["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def llama_style() -> PreTrainedTokenizerFast:
    """Begins every text with its bos token unless told otherwise."""
    tokenizer = with_merges(["<unk>", "<s>", "</s>"], bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    bos: Any = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.backend_tokenizer.post_processor = bos
    return tokenizer


@pytest.fixture(scope="session")
def lowercasing() -> PreTrainedTokenizerFast:
    """Lower-cases before it looks for its end token, so that text without one becomes one."""
    core = Tokenizer(BPE(vocab={c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz<>/#: \n.")}, merges=[]))
    core.normalizer = normalizers.Lowercase()
    core.add_special_tokens([AddedToken("<end>", special=True, normalized=True)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


MAKERS = {"bytes": byte_tokenizer, "gpt2": gpt2_style, "llama": llama_style}


@pytest.fixture(scope="session")
def smollm2() -> PreTrainedTokenizerFast:
    """The real one, from the folder that ALIGNKIT_SMOLLM2 names."""
    folder = os.environ.get("ALIGNKIT_SMOLLM2")
    if not folder:
        pytest.skip("ALIGNKIT_SMOLLM2 names no folder of the real tokenizer, SmolLM2-135M-Instruct's")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session", params=[*MAKERS, "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Each of them in turn."""
    return MAKERS[request.param]() if request.param in MAKERS else request.getfixturevalue("smollm2")


@pytest.fixture(scope="session")
def gpt2() -> PreTrainedTokenizerFast:
    return gpt2_style()


@pytest.fixture(scope="session")
def llama() -> PreTrainedTokenizerFast:
    return llama_style()
