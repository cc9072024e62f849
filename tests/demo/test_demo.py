"""The demo: rows that ship in the package, and a tiny model that learns them."""

import json
import re
from importlib import resources
from pathlib import Path

import pytest

from alignkit.demo import show

ASIDE = {
    "a",
    "an",
    "the",
    "what",
    "is",
    "this",
    "in",
    "of",
    "to",
    "say",
    "hello",
    "goodbye",
    "repeat",
    "word",
    "spell",
    "first",
    "letter",
    "write",
    "capitals",
}


def rows(name: str) -> list[dict[str, str]]:
    text = resources.files("alignkit.demo").joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def payload(row: dict[str, str]) -> set[str]:
    """The words a row is about: what is left of its prompt without the words of the question itself."""
    return set(re.findall(r"[a-z]+", f"{row['instruction']} {row.get('input', '')}".lower())) - ASIDE


def test_held_out_rows_share_no_word_with_the_training_rows() -> None:
    train, held_out = rows("train.jsonl"), rows("heldout.jsonl")
    assert len(held_out) == 100
    assert all(len(payload(row)) == 1 for row in train + held_out)
    assert not set.union(*map(payload, train)) & set.union(*map(payload, held_out))


def test_every_answer_follows_from_its_question() -> None:
    for row in rows("train.jsonl") + rows("heldout.jsonl"):
        (word,) = payload(row)
        wanted = {
            "Repeat": word,
            "What": word[0],
            "Spell": "-".join(word),
            "Write": word.upper(),
            "Say": f"{'Hello' if 'hello' in row['instruction'] else 'Goodbye'}, {word}!",
        }
        assert row["output"] == wanted[row["instruction"].split()[0]]


@pytest.mark.slow
def test_the_demo_learns_words_it_has_never_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact = show(tmp_path / "run")
    assert exact["before"] <= 0.02
    assert exact["after"] >= 0.9
    shown = capsys.readouterr().out
    assert "1  What the loss sees" in shown
    assert "right to the letter: 0% → " in shown
