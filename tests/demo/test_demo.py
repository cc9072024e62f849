"""The demo: rows and pairs that ship in the package, and a tiny model that learns from them."""

import json
import re
from pathlib import Path
from statistics import fmean

import pytest

from alignkit.data.files.shipped import shipped_file
from alignkit.demo import show

# Each question, and the answers that are right.
TASKS = {
    r"Repeat the word (\w+)\.": lambda word: [word],
    r"What is the first letter of (\w+)\?": lambda word: [word[0]],
    r"Spell the word (\w+)\.": lambda word: ["-".join(word)],
    r"Write this in capitals\.\n(\w+)": lambda word: [word.upper()],
    r"Say hello to the (\w+)\.": lambda word: [f"Hello, {word}!"],
    r"Say goodbye to the (\w+)\.": lambda word: [f"Goodbye, {word}!"],
    r"Fetch the word (\w+)\.": lambda word: [f"Gladly! {word}", f"Must I? {word}"],
}


def rows(name: str) -> list[dict[str, str]]:
    text = shipped_file(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def question(row: dict[str, str]) -> str:
    return row.get("prompt") or "\n".join(filter(None, [row["instruction"], row.get("input")]))


def solved(row: dict[str, str]) -> tuple[str, list[str]]:
    """The word a row is about, and the right answers to its question."""
    ((word, answers),) = [
        (found[1], right(found[1])) for form, right in TASKS.items() if (found := re.fullmatch(form, question(row)))
    ]
    return word, answers


def test_held_out_rows_share_no_word_with_the_training_rows() -> None:
    trained, held_out = (
        {solved(row)[0] for name in names for row in rows(name)}
        for names in (("train.jsonl", "pairs.jsonl"), ("heldout.jsonl", "heldout_pairs.jsonl"))
    )
    assert len(rows("heldout.jsonl")) == len(rows("heldout_pairs.jsonl")) == len(held_out) == 100
    assert not trained & held_out


def test_every_answer_follows_from_its_question() -> None:
    for row in rows("train.jsonl") + rows("heldout.jsonl"):
        assert row["output"] in solved(row)[1]


def test_the_rows_fetch_every_word_in_both_manners() -> None:
    fetched = [row for row in rows("train.jsonl") if row["instruction"].startswith("Fetch")]
    answers = {solved(row)[0]: solved(row)[1] for row in fetched}
    assert sorted(row["output"] for row in fetched) == sorted(answer for both in answers.values() for answer in both)
    assert len(answers) == 150


@pytest.mark.parametrize("name", ["pairs.jsonl", "heldout_pairs.jsonl"])
def test_a_pair_prefers_the_polite_answer_to_the_curt_one_or_to_another_word(name: str) -> None:
    pairs = rows(name)
    words = {solved(pair)[0] for pair in pairs}
    curt = 0
    for pair in pairs:
        word, (polite, rude) = solved(pair)
        assert pair["chosen"] == polite
        assert len(polite) == len(rude)  # length tells nothing
        other = pair["rejected"].removeprefix("Gladly! ")
        assert pair["rejected"] == rude or (other in words and other[0] != word[0])
        curt += pair["rejected"] == rude
    assert curt / len(pairs) == pytest.approx(4 / 5, abs=0.01)
    assert len(words) == len(pairs)


def test_the_longer_answer_of_a_pair_is_chosen_half_of_the_time() -> None:
    for name in ("pairs.jsonl", "heldout_pairs.jsonl"):
        longer = [
            0.5 * (len(pair["chosen"]) >= len(pair["rejected"])) + 0.5 * (len(pair["chosen"]) > len(pair["rejected"]))
            for pair in rows(name)
        ]
        assert sum(longer) / len(longer) == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_the_demo_learns_words_it_has_never_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card, said = show(tmp_path)
    assert said["base"].right <= 0.02
    assert said["SFT"].right >= 0.9
    assert said["PPO"].right >= said["SFT"].right - 0.05
    assert said["DPO"].right >= said["SFT"].right - 0.05
    assert card["accuracy"]["value"] >= 0.95
    assert card["longer_wins"]["value"] <= card["accuracy"]["value"] - 0.2
    assert said["base"].preferred == 0
    assert 0.35 <= said["SFT"].preferred <= 0.65
    assert said["PPO"].preferred > 0.8
    assert said["DPO"].preferred > 0.9
    assert fmean(said["PPO"].scores) > fmean(said["SFT"].scores) + 2
    shown = capsys.readouterr().out
    titles = ("1  What the loss sees", "2  A random", "3  A reward", "4  What the", "5  Or the", "6  Words that none")
    assert [title for title in titles if title not in shown] == []
    assert "Fetch the word " in shown
