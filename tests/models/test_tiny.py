import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import alignkit
from alignkit.errors import ModelError
from alignkit.models.tiny import SPECIAL_TOKENS, byte_tokenizer, config_problems, random_model

SHIPPED = Path(alignkit.__file__).parent / "conf" / "model"
GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32}
TOKENIZER = byte_tokenizer()


def test_a_token_is_a_byte_and_nothing_is_added() -> None:
    assert TOKENIZER("hé\n")["input_ids"] == [0x68, 0xC3, 0xA9, 0x0A]


def test_the_special_tokens_follow_the_bytes() -> None:
    assert len(TOKENIZER) == 261
    assert TOKENIZER.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [256, 257, 258, 259, 260]
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (256, 257, 258)
    assert TOKENIZER("a<|im_end|>b")["input_ids"] == [97, 260, 98]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_as_it_was(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    if "<|" not in text:
        assert ids == list(text.encode())


@pytest.mark.parametrize(
    "text",
    ["\x00\x01\x7f", " two  spaces . n't ", "👩\u200d👧 \u200b\ufeff", "a\r\nb\tc\n\n", "<|bos|>x<|pad|>"],
)
def test_awkward_text_comes_back_as_it_was(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_a_saved_tokenizer_is_the_same_one(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("né <|eos|> .")["input_ids"] == TOKENIZER("né <|eos|> .")["input_ids"]
    assert loaded.decode(loaded("né .")["input_ids"]) == "né ."
    assert loaded.all_special_ids == [257, 258, 256, 259, 260]


def test_weights_are_a_function_of_config_and_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = random_model(GPT2, tokenizer=TOKENIZER, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = (random_model(GPT2, tokenizer=TOKENIZER, seed=seed) for seed in (5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.transformer.wte.weight, other.transformer.wte.weight)


def test_the_vocabulary_and_special_ids_come_from_the_tokenizer() -> None:
    config = random_model(GPT2, tokenizer=TOKENIZER, seed=0).config
    assert (config.vocab_size, config.pad_token_id, config.bos_token_id, config.eos_token_id) == (261, 256, 257, 258)


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_the_shipped_models_are_small_and_built_in_a_moment(name: str) -> None:
    config = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())["config"]
    start = time.process_time()
    model = random_model(config, tokenizer=TOKENIZER, seed=0)
    assert time.process_time() - start < 1
    assert 1e6 < model.get_memory_footprint() < 4e6
    assert not model.training


@pytest.mark.parametrize(
    ("config", "problems"),
    [
        ({}, ["model.config: model_type is missing; model=tiny_gpt2 and model=tiny_llama are complete examples"]),
        ({"model_type": "gpt22"}, ["model.config.model_type: unknown 'gpt22'; did you mean 'gpt2'?"]),
        ({"model_type": "t5"}, ["model.config.model_type: 't5' has no causal language model in transformers"]),
        (
            {"model_type": "gpt2", "n_layers": 2, "vocab_size": 9, "hidden_size": 8},
            [
                "model.config.n_layers: gpt2 has no such setting; did you mean 'n_layer'?",
                "model.config.vocab_size: comes from the tokenizer, leave it out",
            ],
        ),
    ],
)
def test_wrong_keys_are_named(config: dict[str, object], problems: list[str]) -> None:
    assert config_problems(config) == problems


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_layer": "two"}, "model.config: gpt2 cannot be built: .*Field 'n_layer' expected int, got str"),
        ({"n_head": 5}, "model.config: gpt2 cannot be built: .*divisible by num_heads"),
        ({"n_head": 0}, "model.config: gpt2 cannot be built: integer division or modulo by zero"),
        ({"activation_function": "gulp"}, "model.config: gpt2 cannot be built: 'gulp'"),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        random_model(GPT2 | change, tokenizer=TOKENIZER, seed=0)
    assert "\n" not in str(caught.value)
