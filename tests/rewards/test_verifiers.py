"""Verifiers: what earns 1, and what is refused before a model is loaded."""

import importlib.util
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from alignkit.cli import app
from alignkit.config import ModelConfig
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import RewardError
from alignkit.rewards.load import check_reward_answers, check_rewards, load_rewards
from alignkit.rewards.sample import Sample
from alignkit.rewards.source import parse_rewards
from alignkit.rewards.verifiers import VERIFIERS

UNREAD = "reward[0] (verifier: math) cannot parse its 'a': write a number, or LaTeX like $\\frac{1}{2}$"
ASKED = Conversation((Message("user", "How many?"),))


def scores(source: dict[str, Any], *completions: str, answer: Any = None) -> list[float | None]:
    rewards = load_rewards(parse_rewards([source]), ModelConfig(), device=torch.device("cpu"))
    found = rewards.score([Sample("rows:1", ASKED, text, {"a": answer}) for text in completions])
    rewards.close()
    return found.by_source[source["verifier"]]


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (72, "She has 24 + 48 = 72 clips.", "72 of 73"),
        ("1,234", "#### 1234", "#### 1235"),
        ("\\frac{1}{2}", "so \\boxed{0.5}", "so \\boxed{\\frac{2}{1}}"),
        ("$x^2+1$", "We find $1 + x^2$.", "We find $x^2 - 1$."),
        ("Half of 48 is 24. #### 24", "\\boxed{24}", "\\boxed{48}"),
    ],
)
def test_math_is_right_where_the_last_expression_equals_the_answer(answer: Any, right: str, wrong: str) -> None:
    assert scores({"verifier": "math", "answer": "a"}, right, wrong, "I do not know.", answer=answer) == [1, 0, 0]


@pytest.mark.parametrize(
    ("source", "right", "wrong"),
    [
        ({"verifier": "exact", "answer": "a"}, [" 7\n"], ["7.0", "is 7", ""]),
        ({"verifier": "regex", "pattern": r"\d"}, ["is 7"], ["seven", ""]),
        ({"verifier": "regex", "pattern": r"\d", "answer": "a"}, ["3 or 7"], ["7 or 3", ""]),
        ({"verifier": "regex", "pattern": r"= (\d)(?!\d)", "answer": "a"}, ["= 3 = 7"], ["7", "= 3"]),
        ({"verifier": "format"}, ["<think>a</think>b", "a\nb</think>\n\nb "], ["b", "a</think> \n", "</think>b"]),
        ({"verifier": "format"}, [], ["a</think>b</think>c", "<think><think>a</think>b", "b<think>a</think>"]),
        ({"verifier": "format", "pattern": r"[a-z ]+"}, ["so it is"], ["So it is", "it is\n", ""]),
        ({"verifier": "length", "min": 2, "max": 3}, ["äö", "abc"], ["a", "abcd"]),
        ({"verifier": "length", "max": 3}, ["", "abc"], ["abcd"]),
    ],
)  # fmt: skip
def test_a_verifier_gives_1_for_what_is_right(source: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    assert scores(source, *right, *wrong, answer=7) == [1] * len(right) + [0] * len(wrong)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ({"verifier": "maths", "answer": "a"}, "verifier is 'maths'; did you mean 'math'?"),
        ({"verifier": "x"}, "verifier is 'x': choose math, exact, regex, format, length"),
        ({"verifier": "math"}, "answer is missing: verifier: math gives 1 where the completion's last"),
        ({"verifier": "length"}, "min or .max is missing: verifier: length gives 1 where the completion has"),
        ({"verifier": "exact", "answer": "a", "min": 2}, "min has no effect on verifier: exact: it takes answer"),
        ({"verifier": "regex", "pattern": "("}, "pattern is '(', no regular expression: missing ), unterminated"),
        ({"verifier": "length", "min": 3, "max": 2}, "min=3 is more than reward[0].max=2"),
        ({"verifier": "length", "min": -1}, "min is -1: it must be a number of characters, 0 or more"),
        ({"verifier": "exact", "answer": 3}, "answer is 3: it must be a name"),
        ({"function": "mine.py:f", "answer": "a"}, "answer has no effect on a function: only a verifier has it"),
        ({"model": "run", "timeout": 2}, "timeout has no effect on a model: only a function or a verifier has it"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_verifier_is_a_line(source: dict[str, Any], line: str) -> None:
    with pytest.raises(RewardError) as caught:
        parse_rewards([source])
    (problem,) = caught.value.problems
    assert problem.startswith(f"reward[0].{line}")


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = parse_rewards([{"verifier": "math", "answer": "a"}])
    assert check_rewards(sources) == []
    monkeypatch.setattr("alignkit.rewards.answers.find_spec", lambda name: importlib.util.find_spec("nowhere"))
    assert check_rewards(sources) == ["reward[0]: verifier: math needs math-verify: pip install 'alignkit[verify]'"]


@pytest.mark.parametrize(
    ("verifier", "answers", "lines"),
    [
        ("exact", ["yes", "N/A"], []),
        ("math", [72, "-1.5", "\\sqrt{2}", "x", "(1, 2)", "$a/b$", "24 + 48 = 72. #### 72"], []),
        ("math", [1, "N/A", "", None], [
            "rows:4: has no 'a', which reward[0] checks completions against",
            f"rows:2: {UNREAD}",
            f"rows:3: {UNREAD}",
        ]),
        ("math", ["N/A"] * 5, [
            *(f"rows:{row}: {UNREAD}" for row in (1, 2, 3)),
            "… and 2 rows more",
        ]),
    ],
)  # fmt: skip
def test_answers_are_read_before_a_model_is_loaded(verifier: str, answers: list[Any], lines: list[str]) -> None:
    sources = parse_rewards([{"verifier": verifier, "answer": "a"}])
    rows = [(f"rows:{row}", {"a": answer}) for row, answer in enumerate(answers, 1)]
    try:
        check_reward_answers(sources, rows)
        found: tuple[str, ...] = ()
    except RewardError as error:
        found = tuple(error.problems)
    assert list(found) == lines


def test_a_column_of_answers_that_no_row_has_is_named() -> None:
    with pytest.raises(RewardError) as caught:
        check_reward_answers(parse_rewards([{"verifier": "exact", "answer": "anser"}]), [("rows:1", {"answer": 1})])
    assert str(caught.value) == "reward[0].answer: 'anser' is no column of the prompts; did you mean 'answer'?"


def test_the_help_lists_them_all() -> None:
    words = CliRunner().invoke(app, ["ppo", "--help"], env={"COLUMNS": "200"}).output.replace(",", " ").split()
    assert [name for name in VERIFIERS if name not in words and f"{name}." not in words] == []
