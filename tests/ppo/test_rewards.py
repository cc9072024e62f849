"""Reward sources: what is refused before anything is loaded, and what a source may return."""

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, GPT2Config

from alignkit.data.conversation import Conversation, Message
from alignkit.data.prompts import Prompt
from alignkit.errors import RewardError
from alignkit.models.tiny import byte_tokenizer
from alignkit.ppo.rewards import Sample, check_rewards, load_rewards

CPU = torch.device("cpu")
FUNCTIONS = """
import math, time
def length(prompts, completions, **columns): return [len(c) for c in completions]
def wants(prompts, completions, tag): return [float(t == "x") for t in tag]
def one(prompts): return [1]
async def later(prompts, completions): return [1]
def short(prompts, completions): return [1.0]
def none(prompts, completions): return [None if "b" in c else 1 for c in completions]
def nan(prompts, completions): return [math.nan for c in completions]
def text(prompts, completions): return ["good" for c in completions]
def number(prompts, completions): return 3
def fails(prompts, completions): return [1 / (c.count("a")) for c in completions]
def sleeps(prompts, completions): time.sleep(30)
def whole(prompts, completions):
    if len(completions) > 1: raise KeyError("only one at a time")
    return [1.0]
"""


def sample(completion: str, **columns: Any) -> Sample:
    conversation = Conversation((Message("user", "Say a."),))
    return Sample(Prompt("rows.jsonl:1", [1], "Say a.", conversation, columns), completion)


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
        ([{"weight": 1}], "reward[0] names no source: give one of function, classifier, model"),
        ([{"function": "a:b", "model": "c"}], "reward[0] names function and model: give one of"),
        ([{"funtion": "mine.py:length"}], "reward[0]: unknown key 'funtion'; did you mean 'function'?"),
        ([{"function": "mine.py:length", "weight": 0}], "reward[0].weight is 0: it must be a number other than 0"),
        ([{"function": "mine.py:length", "weight": "x"}], "reward[0].weight is 'x': it must be a number other than 0"),
        ([{"function": "mine.py:length", "timeout": -1}], "reward[0].timeout is -1: it must be seconds above 0"),
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
        ([{"model": "gone"}], "reward[0].model: "),
    ],
)
def test_a_mistake_is_a_line_before_anything_is_loaded(reward: Any, line: str, classifier: Path) -> None:
    assert any(found.startswith(line) for found in check_rewards(reward)), check_rewards(reward)


def test_a_function_may_not_be_asynchronous() -> None:
    (line,) = check_rewards([{"function": "mine.py:later"}])
    assert line.startswith("reward[0]: mine.py:later is asynchronous")


def test_a_classifier_with_two_outputs_is_no_reward_run(classifier: Path) -> None:
    (line,) = check_rewards([{"model": "classifier"}])
    assert line == "reward[0].model: classifier has 2 outputs, a reward has one: take it as a classifier and a label"


def test_several_mistakes_are_told_together() -> None:
    assert len(check_rewards([{"function": "mine.py:gone"}, {"function": "mine.py:one"}])) == 2
    assert len(check_rewards([{"weight": 0}, "x"])) == 3


def test_scores_are_weighted_and_added() -> None:
    rewards = load_rewards(
        [{"function": "mine.py:length", "weight": 0.5}, {"function": "mine.py:wants", "weight": -1}],
        ["tag"],
        device=CPU,
    )
    found = rewards.score([sample("abcd", tag="x"), sample("ab", tag="y")])
    assert found.by_source == {"mine.py:length": [4.0, 2.0], "mine.py:wants": [1.0, 0.0]}
    assert found.total == [1.0, 1.0]


def test_a_column_that_no_row_has_is_refused() -> None:
    with pytest.raises(RewardError, match=r"mine.py:wants asks for 'tag', which is no column of the prompts; did you"):
        load_rewards([{"function": "mine.py:wants"}], ["tags"], device=CPU)


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
    rewards = load_rewards([{"function": f"mine.py:{name}"}], [], device=CPU)
    with pytest.raises(RewardError) as caught:
        rewards.score([sample("a"), sample("b")])
    assert f"mine.py:{name} {line}" in str(caught.value)


def test_what_is_no_score_can_be_skipped() -> None:
    for name in ("none", "fails"):
        rewards = load_rewards([{"function": f"mine.py:{name}", "on_error": "skip"}], [], device=CPU)
        assert rewards.score([sample("a"), sample("b"), sample("a")]).total == [1.0, None, 1.0]


def test_a_function_that_takes_too_long_is_given_up() -> None:
    rewards = load_rewards([{"function": "mine.py:sleeps", "timeout": 0.2}], [], device=CPU)
    began = time.monotonic()
    with pytest.raises(RewardError, match=r"took longer than 0\.2 seconds; raise reward\[0\]\.timeout"):
        rewards.score([sample("a")])
    assert time.monotonic() - began < 5


def test_a_classifier_gives_the_probability_of_its_label(classifier: Path) -> None:
    samples = [sample("good"), sample("a longer answer that is bad"), sample("x" * 500)]
    found = {}
    rewards = load_rewards([{"classifier": "classifier", "label": "POSITIVE"}], [], device=CPU)
    rewards.score(samples)
    assert rewards.cuts() == ["reward[0]: 1 answers were longer than classifier can read, and were cut"]
    for label in ("POSITIVE", "NEGATIVE"):
        for output in ("probability", "logit"):
            source = {"classifier": "classifier", "label": label, "output": output, "batch_size": 2}
            found[label, output] = load_rewards([source], [], device=CPU).score(samples).total
    for row in range(3):
        positive, negative = (found[label, "probability"][row] for label in ("POSITIVE", "NEGATIVE"))
        assert positive is not None
        assert negative is not None
        assert positive + negative == pytest.approx(1.0)
        logits = [found[label, "logit"][row] or 0.0 for label in ("POSITIVE", "NEGATIVE")]
        assert math.log(positive / negative) == pytest.approx(logits[0] - logits[1], abs=1e-5)
