"""Reward sources: what is refused before anything is loaded, and what a source may return."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, GPT2Config, RobertaConfig

from alignkit.config import ModelConfig
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import RewardError
from alignkit.models.tiny import byte_tokenizer
from alignkit.rewards.load import check_reward_columns, check_rewards, load_rewards
from alignkit.rewards.sample import Sample
from alignkit.rewards.source import parse_option, parse_rewards
from alignkit.rewards.weighted import Rewards

CPU = torch.device("cpu")
FUNCTIONS = """
import math, time
import numpy as np
def length(prompts, completions, **columns): return [len(c) for c in completions]
def wants(prompts, completions, tag): return [float(t == "x") for t in tag]
def one(prompts): return [1]
def short(prompts, completions): return [1.0]
def none(prompts, completions): return [None if "b" in c else 1 for c in completions]
def nan(prompts, completions): return [math.nan for c in completions]
def text(prompts, completions): return ["good" for c in completions]
def number(prompts, completions): return 3
def fails(prompts, completions): return [1 / (c.count("a")) for c in completions]
def sleeps(prompts, completions): time.sleep(30)
def made(prompts, completions): return (len(c) for c in completions)
def made_late(prompts, completions): yield time.sleep(30)
def made_badly(prompts, completions): yield 1 / 0
def several(prompts, completions): return np.ones((len(completions), 2))
def too_large(prompts, completions): return [1e308 for c in completions]
def huge(prompts, completions): return [10**400 for c in completions]
def whole(prompts, completions):
    if len(completions) > 1: raise KeyError("only one at a time")
    return [1.0]
"""


def sample(completion: str, **columns: Any) -> Sample:
    return Sample("rows.jsonl:1", Conversation((Message("user", "Say a."),)), completion, columns)


def problems(reward: list[Any]) -> list[str]:
    try:
        return check_rewards(parse_rewards(reward))
    except RewardError as error:
        return list(error.problems)


def load(*reward: dict[str, Any]) -> Rewards:
    return load_rewards(parse_rewards(reward), ModelConfig(), device=CPU)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # each test its own file: a module is read once
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    return tmp_path


@pytest.fixture
def classifier(folder: Path) -> Path:
    """A tiny classifier with the labels NEGATIVE and POSITIVE."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id,
        id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder / "classifier")
    tokenizer.save_pretrained(folder / "classifier")
    return folder / "classifier"


@pytest.mark.parametrize(
    ("reward", "line"),
    [
        ([], "reward is missing: give a list of sources, such as reward: [{function: my_rewards.py:polite}]"),
        (["x"], "reward[0] is 'x': it must be a source, such as {function: my_rewards.py:polite}"),
        ([{"weight": 1}], "reward[0] names no source: give one of function, classifier, model, verifier"),
        ([{"function": "a:b", "model": "c"}], "reward[0] names function and model: give one of"),
        ([{"funtion": "mine.py:length"}], "reward[0]: unknown key 'funtion'; did you mean 'function'?"),
        ([{"function": "mine.py:length", "weight": 0}], "reward[0].weight is 0: it must be a number other than 0"),
        ([{"function": "mine.py:length", "weight": "x"}], "reward[0].weight is 'x': it must be a number other than 0"),
        ([{"function": "mine.py:length", "timeout": -1}], "reward[0].timeout is -1: it must be seconds above 0"),
        ([{"function": "mine.py:length", "num_proc": 0}], "reward[0].num_proc is 0: it must be a whole number above 0"),
        (
            [{"model": "run", "num_proc": 2}],
            "reward[0].num_proc has no effect on a model: only a function or a verifier has it",
        ),
        ([{"function": "mine.py:length", "on_error": "go"}], "reward[0].on_error is 'go': choose stop, skip"),
        ([{"function": "mine.py:length", "label": "A"}], "reward[0].label has no effect on a function: only"),
        ([{"function": "gone.py:length"}], "reward[0]: gone.py:length: there is no file gone.py"),
        ([{"function": "mine.py:lenght"}], "reward[0]: mine.py has no function 'lenght'; did you mean 'length'?"),
        ([{"function": "mine.py:one"}], "reward[0]: one(prompts) has the wrong signature: it is called (prompts,"),
        ([{"classifier": "gone"}], "reward[0].label is missing: which label's score is the reward?"),
        (
            [{"classifier": "classifier", "label": "GOOD"}],
            "reward[0].label: classifier has no label 'GOOD', it has NEGATIVE, POSITIVE",
        ),
        (
            [{"model": "gone"}],
            "reward[0].model: there is no run directory gone; a classifier is named with its label: "
            "{classifier: gone, label: LABEL}",
        ),
        ([{"function": "builtins:max"}], "reward[0]: builtins:max has no signature to read; call it in a function of"),
    ],
)
def test_a_mistake_is_a_line_before_anything_is_loaded(reward: Any, line: str, classifier: Path) -> None:
    assert any(found.startswith(line) for found in problems(reward)), problems(reward)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("made_late", "took longer than 0.2 seconds"),
        ("made_badly", "raised ZeroDivisionError: division by zero"),
        ("several", "gave array([1., 1.]) for"),
        ("huge", "a score must be a finite number"),
        ("too_large", "gave 1e+308 for rows.jsonl:1"),
        ("too_large", "a score must be a finite number, times its weight 1e+15 at most; on_error: skip leaves"),
        ("number", "returned int"),
    ],
)
def test_what_a_function_returns_is_read_in_its_time_and_checked(name: str, said: str) -> None:
    rewards = load({"function": f"mine.py:{name}", "timeout": 0.2})
    with pytest.raises(RewardError) as caught:
        rewards.score([sample("a")])
    assert said in str(caught.value)


def test_a_weight_that_makes_a_score_too_large_is_a_line() -> None:
    rewards = load({"function": "mine.py:too_large", "weight": 1e-300})
    assert rewards.score([sample("a")]).total == [pytest.approx(1e8)]
    rewards = load({"function": "mine.py:made", "weight": 1e16})
    with pytest.raises(RewardError, match=r"^reward\[0\]: mine.py:made gave 1 for .*, times its weight 1e\+15 at most"):
        rewards.score([sample("a")])


def test_a_generator_is_as_good_as_a_list() -> None:
    assert load({"function": "mine.py:made"}).score([sample("a"), sample("abc")]).total == [1.0, 3.0]


def test_a_classifier_that_cannot_pad_reads_one_text_at_a_time(classifier: Path) -> None:
    source = {"classifier": "classifier", "label": "POSITIVE"}
    samples = [sample("a"), sample("a longer text")]
    padded = load(source).score(samples).total
    path = classifier / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": None}))
    assert load(source).score(samples).total == pytest.approx(padded, abs=1e-6)


@pytest.mark.parametrize("changed", [{"padding_side": "left"}, {"pad_token": "<|bos|>"}])
def test_a_text_scores_as_it_does_alone_however_its_tokenizer_pads(classifier: Path, changed: dict[str, str]) -> None:
    path = classifier / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    rewards, samples = load({"classifier": "classifier", "label": "POSITIVE"}), [sample("a"), sample("a longer text")]
    alone = [rewards.score([one]).total[0] for one in samples]
    assert rewards.score(samples).total == pytest.approx(alone, abs=1e-6)


def test_a_text_is_cut_to_the_positions_that_there_are(folder: Path) -> None:
    config = RobertaConfig(
        num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=16, vocab_size=300,
        max_position_embeddings=34, pad_token_id=256, id2label={0: "BAD", 1: "GOOD"}, label2id={"BAD": 0, "GOOD": 1},
    )  # fmt: skip
    config.max_position_embeddings += config.pad_token_id - 1  # 32 positions, counted from behind the padding's
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "roberta")
    byte_tokenizer().save_pretrained(folder / "roberta")
    rewards = load({"classifier": "roberta", "label": "GOOD"})
    (score,) = rewards.score([sample("x" * 60)]).total
    assert score is not None
    assert 0 < score < 1


def test_a_classifier_with_two_outputs_is_no_reward_run(classifier: Path) -> None:
    (line,) = problems([{"model": "classifier"}])
    assert line == (
        "reward[0].model: classifier has 2 outputs, a reward has one; take it as a classifier and one of its labels, "
        "NEGATIVE, POSITIVE"
    )


def test_an_option_names_a_source_of_any_kind(classifier: Path) -> None:
    named = {name: parse_option(name, batch_size=3) for name in ("mine.py:length", "classifier#POSITIVE", "classifier")}
    assert [source.kind for source in named.values()] == ["function", "classifier", "model"]
    assert named["classifier#POSITIVE"].label == "POSITIVE"
    assert {source.batch_size for source in named.values()} == {3}
    for name in ("mine.py:length", "classifier#POSITIVE"):
        assert check_rewards([named[name]]) == []
    Path("a#b").mkdir()
    assert parse_option("a#b", batch_size=1).kind == "model"  # a folder is what it is called


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("gone.py:length", "--reward: gone.py:length: there is no file gone.py"),
        (
            "mine.py:one",
            "--reward: one(prompts) has the wrong signature: it is called (prompts, completions, **columns)",
        ),
        ("classifier#GOOD", "--reward: classifier has no label 'GOOD', it has NEGATIVE, POSITIVE"),
        (
            "classifier#positive",
            "--reward: classifier has no label 'positive', it has NEGATIVE, POSITIVE",
        ),
        ("classifier#", "--reward: classifier has no label '', it has NEGATIVE, POSITIVE"),
        (
            "classifier",
            "--reward: classifier has 2 outputs, a reward has one; as a classifier it takes a label, "
            "classifier#NEGATIVE: it has NEGATIVE, POSITIVE",
        ),
        (
            "org/name",
            "--reward: there is no run directory org/name; a classifier is named with its label: "
            "--reward org/name#LABEL",
        ),
    ],
)
def test_a_mistake_in_an_option_is_a_line(name: str, line: str, classifier: Path) -> None:
    (found,) = check_rewards([parse_option(name, batch_size=1)])
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("name", "way_out"), [("nan", "a score must be a finite number"), ("sleeps", "seconds; lower batch_size")]
)
def test_the_way_out_of_an_option_is_no_setting_that_it_lacks(name: str, way_out: str) -> None:
    source = replace(parse_option(f"mine.py:{name}", batch_size=1), timeout=0.2)
    rewards = load_rewards([source], ModelConfig(), device=CPU)
    with pytest.raises(RewardError) as caught:
        rewards.score([sample("a")])
    assert str(caught.value).startswith(f"--reward: mine.py:{name} ")
    assert way_out in str(caught.value)
    assert "on_error" not in str(caught.value)


def test_an_option_gives_a_function_no_columns() -> None:
    source = parse_option("mine.py:wants", batch_size=1)
    with pytest.raises(RewardError) as caught:
        check_reward_columns([source], [])
    assert str(caught.value) == (
        "--reward: mine.py:wants asks for 'tag', and gets prompts and completions alone here: give it a default"
    )


def test_several_mistakes_are_told_together() -> None:
    assert len(problems([{"function": "mine.py:gone"}, {"function": "mine.py:one"}])) == 2
    assert len(problems([{"weight": 0}, "x"])) == 3


def test_scores_are_weighted_and_added() -> None:
    rewards = load({"function": "mine.py:length", "weight": 0.5}, {"function": "mine.py:wants", "weight": -1})
    found = rewards.score([sample("abcd", tag="x"), sample("ab", tag="y")])
    assert found.by_source == {"mine.py:length": [4.0, 2.0], "mine.py:wants": [1.0, 0.0]}
    assert found.total == [1.0, 1.0]


def test_a_column_that_no_row_has_is_refused() -> None:
    with pytest.raises(RewardError, match=r"mine.py:wants asks for 'tag', which is no column of the prompts; did you"):
        check_reward_columns(parse_rewards([{"function": "mine.py:wants"}]), ["tags"])


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("short", "returned 1 scores for 2 completions: it is called (prompts, completions, **columns)"),
        ("none", "gave None for rows.jsonl:1, prompt 'Say a.', completion 'b': a score must be a finite number"),
        ("nan", "gave nan for rows.jsonl:1"),
        ("text", "gave 'good' for rows.jsonl:1"),
        ("number", "returned int: it is called"),
        ("fails", "raised ZeroDivisionError: division by zero; the sample is rows.jsonl:1, prompt 'Say a.'"),
        ("whole", "raised KeyError: 'only one at a time'; the first of its 2 samples is rows.jsonl:1"),
    ],
)
def test_what_is_no_score_names_the_function_and_the_sample(name: str, line: str) -> None:
    rewards = load({"function": f"mine.py:{name}"})
    with pytest.raises(RewardError) as caught:
        rewards.score([sample("a"), sample("b")])
    assert f"mine.py:{name} {line}" in str(caught.value)


def test_what_is_no_score_can_be_skipped() -> None:
    for name in ("none", "fails"):
        rewards = load({"function": f"mine.py:{name}", "on_error": "skip"})
        assert rewards.score([sample("a"), sample("b"), sample("a")]).total == [1.0, None, 1.0]


def test_a_function_that_takes_too_long_is_given_up() -> None:
    rewards = load({"function": "mine.py:sleeps", "timeout": 0.2})
    began = time.monotonic()
    with pytest.raises(RewardError, match=r"took longer than 0\.2 seconds; raise reward\[0\]\.timeout"):
        rewards.score([sample("a")])
    assert time.monotonic() - began < 5


def test_a_classifier_gives_the_probability_of_its_label(classifier: Path) -> None:
    samples = [sample("good"), sample("a longer answer that is bad"), sample("x" * 500)]
    found = {}
    rewards = load({"classifier": "classifier", "label": "POSITIVE"})
    rewards.score(samples)
    assert rewards.truncations() == ["reward[0]: 1 answers were longer than classifier can read, and were truncated"]
    for label in ("POSITIVE", "NEGATIVE"):
        for output in ("probability", "logit"):
            source = {"classifier": "classifier", "label": label, "output": output, "batch_size": 2}
            found[label, output] = load(source).score(samples).total
    for row in range(3):
        positive, negative = (found[label, "probability"][row] for label in ("POSITIVE", "NEGATIVE"))
        assert positive is not None
        assert negative is not None
        assert positive + negative == pytest.approx(1.0)
        logits = [found[label, "logit"][row] or 0.0 for label in ("POSITIVE", "NEGATIVE")]
        assert math.log(positive / negative) == pytest.approx(logits[0] - logits[1], abs=1e-5)


def test_a_file_of_the_same_name_in_another_folder_is_another_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"function": "mine.py:length"}
    assert problems([source]) == []  # what a check has started is for the scorer to come
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    Path("mine.py").write_text("def length(prompts, completions): return [0.0 for _ in completions]\n")
    assert load(source).score([sample("abc")]).total == [0.0]
