"""The tokenizers on which the templates of today are tried are what their models' are."""

import pytest

from families import CONVERSATIONS, TEXT_TEMPLATES, family_of, family_tokenizer


def test_there_are_59_text_templates() -> None:
    assert len(TEXT_TEMPLATES) == 59


@pytest.mark.parametrize("template", TEXT_TEMPLATES)
def test_each_added_token_is_one_id(template: str) -> None:
    tokenizer = family_tokenizer(template)
    for token in family_of(template).added:
        assert len(tokenizer.encode(token.content, add_special_tokens=False)) == 1
        ids = tokenizer.encode(f"a{token.content}b", add_special_tokens=False)
        assert tokenizer.decode(ids) == f"a{token.content}b"
        assert tokenizer.decode(ids, skip_special_tokens=True) == ("ab" if token.special else f"a{token.content}b")


@pytest.mark.parametrize("template", TEXT_TEMPLATES)
def test_a_template_writes_an_answer(template: str) -> None:
    messages = [{"role": m.role, "content": m.content} for m in CONVERSATIONS["one turn"].messages]
    assert "It is birch." in family_tokenizer(template).apply_chat_template(messages, tokenize=False)


def test_newlines_beside_a_tag_merge_otherwise_in_one_text() -> None:
    tokenizer = family_tokenizer("qwen3")
    apart = [tokenizer.encode(text) for text in ("<think>\n", "\n</think>")]
    assert tokenizer.encode("<think>\n\n</think>") != [id for ids in apart for id in ids]
    assert tokenizer.tokenize("<think>\n\n</think>") == ["<think>", "ĊĊ", "</think>"]


def test_llama_begins_a_text_with_bos_and_qwen_does_not() -> None:
    assert family_tokenizer("llama3_2").tokenize("a", add_special_tokens=True) == ["<|begin_of_text|>", "a"]
    assert family_tokenizer("qwen3").tokenize("a", add_special_tokens=True) == ["a"]
