"""Rows over the limit: dropped, or cut so that what is left still reads as the template wrote it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from alignkit.choices import Overlength, TrainOn
from alignkit.config import TemplateConfig
from alignkit.data.encode.lengths import apply_length, needed_length
from alignkit.data.encode.masking import EncodeRules, Encoding, encode
from alignkit.data.encode.templates import load_template
from alignkit.data.rows.conversation import Conversation, Message

NO = -100


def row(
    *texts: str, tokenizer: PreTrainedTokenizerFast, name: str = "user_bot", train_on: TrainOn = TrainOn.assistant
) -> Encoding:
    messages = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))
    template = load_template(TemplateConfig(name=name), tokenizer)
    return encode(Conversation(messages), template, tokenizer, EncodeRules(train_on))[-1]  # the whole conversation


def shown(encoding: Encoding | None) -> tuple[str, str]:
    """The row byte by byte, `$` for eos; and what of it has loss, with `_` elsewhere."""
    assert encoding is not None
    letters = {258: "$", 260: "$", 259: "^", NO: "_"}
    text, labels = ("".join(letters.get(i) or chr(i) for i in ids) for ids in (encoding.input_ids, encoding.labels))
    return text, labels


def test_a_row_that_fits_stays_as_it_is(byte: PreTrainedTokenizerFast) -> None:
    whole = row("abc", "xyz", tokenizer=byte)
    assert len(whole.input_ids) == 28
    for policy in Overlength:
        assert apply_length(whole, max_length=28, policy=policy) == (whole, "")


def test_drop(byte: PreTrainedTokenizerFast) -> None:
    assert apply_length(row("abc", "xyz", tokenizer=byte), max_length=27, policy=Overlength.drop) == (None, "too_long")


def test_what_follows_the_last_response_goes_first(byte: PreTrainedTokenizerFast) -> None:
    whole = row("a", "x", tokenizer=byte, name="chatml")
    assert shown(whole)[0] == "^user\na$\n^assistant\nx$\n"
    for policy in Overlength:
        kept, reason = apply_length(whole, max_length=len(whole.input_ids) - 1, policy=policy)
        assert (shown(kept)[0], reason) == ("^user\na$\n^assistant\nx$", "")


@pytest.mark.parametrize(
    ("max_length", "text", "labels"),
    [
        (27, "### User:\nbc\n\n### Bot:\nxyz$", "_" * 23 + "xyz$"),
        (26, "### User:\nc\n\n### Bot:\nxyz$", "_" * 22 + "xyz$"),
        (25, "### User:\n\n\n### Bot:\nxyz$", "_" * 21 + "xyz$"),
    ],
)
def test_keep_end_cuts_the_prompt_between_its_head_and_the_heading_of_the_response(
    max_length: int, text: str, labels: str, byte: PreTrainedTokenizerFast
) -> None:
    kept, reason = apply_length(row("abc", "xyz", tokenizer=byte), max_length=max_length, policy=Overlength.keep_end)
    assert (*shown(kept), reason) == (text, labels, "cut_start")
    assert kept is not None
    assert kept.responses == ((max_length - 4, max_length),)


def test_keep_end_drops_what_does_not_fit_even_so(byte: PreTrainedTokenizerFast) -> None:
    whole = row("abc", "xyz", tokenizer=byte)
    for max_length in (1, 9, 10, 24):
        assert apply_length(whole, max_length=max_length, policy=Overlength.keep_end) == (None, "too_long")


def test_keep_end_keeps_the_system_message(byte: PreTrainedTokenizerFast) -> None:
    template = load_template(TemplateConfig(name="user_bot"), byte)
    messages = (Message("system", "Rhyme."), Message("user", "a long question"), Message("assistant", "x"))
    (whole,) = encode(Conversation(messages), template, byte, EncodeRules())
    kept, _ = apply_length(whole, max_length=len(whole.input_ids) - 7, policy=Overlength.keep_end)
    assert shown(kept)[0] == "Rhyme.\n\n### User:\nquestion\n\n### Bot:\nx$"


def test_keep_end_trains_no_response_that_lost_its_beginning_or_its_heading(byte: PreTrainedTokenizerFast) -> None:
    whole = row("aa", "xx", "bb", "yy", tokenizer=byte)
    assert shown(whole)[0] == "### User:\naa\n\n### Bot:\nxx$\n\n### User:\nbb\n\n### Bot:\nyy$"
    end = "\n\n### User:\nbb\n\n### Bot:\nyy$"
    for num_cut, text in [(3, "\n### Bot:\nxx$"), (13, "xx$"), (14, "x$"), (15, "$")]:
        kept, _ = apply_length(whole, max_length=len(whole.input_ids) - num_cut, policy=Overlength.keep_end)
        assert shown(kept) == (f"### User:\n{text}{end}", "_" * (len(text) + 35) + "yy$")
        assert kept is not None
        assert len(kept.responses) == 1
    kept, _ = apply_length(whole, max_length=len(whole.input_ids) - 2, policy=Overlength.keep_end)
    assert kept is not None
    assert [shown(kept)[0][a:b] for a, b in kept.responses] == ["xx$", "yy$"]
    assert shown(kept)[1].replace("_", "") == "xx$yy$"


def test_keep_start_loses_the_end_token_or_the_row(byte: PreTrainedTokenizerFast) -> None:
    whole = row("abc", "xyz", tokenizer=byte)
    kept, reason = apply_length(whole, max_length=26, policy=Overlength.keep_start)
    assert (*shown(kept), reason) == ("### User:\nabc\n\n### Bot:\nxy", "_" * 24 + "xy", "cut_end")
    assert apply_length(whole, max_length=24, policy=Overlength.keep_start) == (None, "nothing_to_learn")


def test_a_response_that_stays_without_loss_is_nothing_to_learn(byte: PreTrainedTokenizerFast) -> None:
    first = Message("assistant", "x" * 20)
    messages = (Message("user", "a"), first, Message("user", "b"), Message("assistant", "y", train=False))
    template = load_template(TemplateConfig(name="user_bot"), byte)
    (whole,) = encode(Conversation(messages), template, byte, EncodeRules())
    assert apply_length(whole, max_length=30, policy=Overlength.keep_end) == (None, "too_long")
    assert apply_length(whole, max_length=20, policy=Overlength.keep_start) == (None, "nothing_to_learn")


def test_plain_text_is_cut_at_either_end(llama: PreTrainedTokenizerFast) -> None:
    template = load_template(TemplateConfig(name="user_bot"), llama)
    plain = Conversation((Message("assistant", "abcdefgh"),), plain=True)
    (whole,) = encode(plain, template, llama, EncodeRules())
    kept, reason = apply_length(whole, max_length=4, policy=Overlength.keep_end)
    assert (llama.decode(kept.input_ids if kept else []), reason) == ("<s>gh</s>", "cut_start")
    kept, reason = apply_length(whole, max_length=4, policy=Overlength.keep_start)
    assert (llama.decode(kept.input_ids if kept else []), reason) == ("<s>abc", "cut_end")


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.text("ab\n é", max_size=12), min_size=2, max_size=6).map(lambda t: t[: len(t) // 2 * 2]),
    max_length=st.integers(1, 120),
    policy=st.sampled_from(Overlength),
    train_on=st.sampled_from(TrainOn),
    name=st.sampled_from(["instruction", "human_assistant", "chatml"]),
)
def test_no_row_is_ever_longer_and_a_response_with_loss_is_whole(
    texts: list[str],
    max_length: int,
    policy: Overlength,
    train_on: TrainOn,
    name: str,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    whole = row(*texts, tokenizer=tokenizer, name=name, train_on=train_on)
    kept, reason = apply_length(whole, max_length=max_length, policy=policy)
    if kept is None:
        assert reason in ("too_long", "nothing_to_learn")
        return
    assert len(kept.labels) == len(kept.input_ids) <= max_length
    assert all(label in (NO, i) for i, label in zip(kept.input_ids, kept.labels, strict=True))
    assert (kept.cuts == {}) == (reason == "")
    if kept.cuts:
        before, behind = kept.input_ids[: kept.cuts["input_ids"]], kept.input_ids[kept.cuts["input_ids"] :]
        assert whole.input_ids[: len(before)] == before
        assert whole.input_ids[: needed_length(whole)][-len(behind) :] == behind or not behind
    if reason != "cut_end":
        start, stop = whole.responses[-1]
        assert kept.responses[-1][1] - kept.responses[-1][0] == stop - start
        for (a, b), (c, d) in zip(kept.responses[::-1], whole.responses[::-1], strict=False):
            assert kept.labels[a:b] == whole.input_ids[c:d]
    if reason == "":
        assert kept.labels == whole.labels[: len(kept.labels)]
    if reason == "cut_start":
        assert kept.input_ids[: whole.prefix_length] == whole.input_ids[: whole.prefix_length]
        assert len(kept.input_ids) == max_length
