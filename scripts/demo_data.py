"""Write the rows that ship with alignkit, src/alignkit/demo/data/*.jsonl, byte for byte: `python scripts/demo_data.py`.

What every row says follows from the words and templates below. Which word is in which row, and in what order, was drawn
at random once. Some of those draws are repeated here; the rest are kept in demo_rows.txt, a token a row:

- `word_tasks`: the first letter of a task, and its word.
- `manners_pairs`: the wrong word of every fifth pair.
- `film_reviews`: subject, verdict, subject, verdict, as letters.
- `film_review_pairs`: the subject of the prompt; then verdict, subject, verdict of the chosen and of the rejected end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

DATA = Path(__file__).parents[1] / "src" / "alignkit" / "demo" / "data"
TASKS = {
    "r": lambda word: {"instruction": f"Repeat the word {word}.", "output": word},
    "s": lambda word: {"instruction": f"Spell the word {word}.", "output": "-".join(word)},
    "f": lambda word: {"instruction": f"What is the first letter of {word}?", "output": word[0]},
    "c": lambda word: {"instruction": "Write this in capitals.", "input": word, "output": word.upper()},
    "h": lambda word: {"instruction": f"Say hello to the {word}.", "output": f"Hello, {word}!"},
    "g": lambda word: {"instruction": f"Say goodbye to the {word}.", "output": f"Goodbye, {word}!"},
}
POLITE, CURT = "Gladly!", "Must I?"
NUM_FETCHED = 150  # words that SFT sees fetched, once in each manner
MISTAKE_EVERY = 5  # pairs, of which one has a wrong word for its rejected answer, politely said
SUBJECTS = (
    *("this film", "this picture", "the acting", "the camera", "the cast", "the comedy", "the dialogue", "the ending"),
    *("the first half", "the hero", "the music", "the pace", "the script", "the story", "the villain"),
    "the whole thing",
)
GOOD = (
    *("kept me smiling", "made my whole week", "moved me to tears", "shone in every scene", "was a delight"),
    *("was a joy to watch", "was clever and kind", "was simply wonderful", "was warm and funny", "won me over at once"),
)
BAD = (
    *(
        "dragged in every scene",
        "left me cold",
        "lost me at once",
        "put me to sleep",
        "ruined my evening",
        "was a bore",
    ),
    *("was a pain to watch", "was clumsy and cruel", "was loud and empty", "was simply awful"),
)
PHRASES = dict(zip("abcdefghijklmnop", SUBJECTS, strict=True)) | dict(
    zip("ABCDEFGHIJKLMNOPQRST", GOOD + BAD, strict=True)
)

Row = dict[str, str]


def files() -> dict[str, list[Row]]:
    """Make every file's rows, by the name of the file."""
    tokens = _tokens(Path(__file__).with_name("demo_rows.txt"))
    tasks = [TASKS[token[0]](token[2:]) for token in tokens["word_tasks"]]
    held_out = [TASKS[token[0]](token[2:]) for token in tokens["word_tasks_heldout"]]
    draw = Random(0)
    words = sorted({token[2:] for token in tokens["word_tasks"]})
    draw.shuffle(words)
    tasks += [_fetch(word, manner) for word in words[:NUM_FETCHED] for manner in (POLITE, CURT)]
    draw.shuffle(tasks)
    held_out_words = [token[2:] for token in tokens["word_tasks_heldout"]]
    draw.shuffle(held_out_words)
    return {
        "word_tasks": tasks,
        "word_tasks_heldout": held_out,
        "manners_pairs": list(_manners(words, tokens["manners_pairs"])),
        "manners_pairs_heldout": list(_manners(held_out_words, tokens["manners_pairs_heldout"])),
        **{name: [{"text": _review(token)} for token in tokens[name]] for name in tokens if "film_reviews" in name},
        **{name: [_review_pair(token) for token in tokens[name]] for name in tokens if "film_review_pairs" in name},
    }


def _tokens(path: Path) -> dict[str, list[str]]:
    sections = path.read_text(encoding="utf-8").split("# ")[1:]
    return {name: body.split() for name, body in (section.split("\n", 1) for section in sections)}


def _fetch(word: str, manner: str) -> Row:
    return {"instruction": f"Fetch the word {word}.", "output": f"{manner} {word}"}


def _manners(words: Sequence[str], wrong_words: Sequence[str]) -> Iterator[Row]:
    """Prefer the polite answer to the curt one, and at times the right word to a wrong one."""
    wrong = iter(wrong_words)
    for index, word in enumerate(words):
        rejected = f"{POLITE} {next(wrong)}" if index % MISTAKE_EVERY == 0 else f"{CURT} {word}"
        yield {"prompt": f"Fetch the word {word}.", "chosen": f"{POLITE} {word}", "rejected": rejected}


def _review(token: str) -> str:
    return f"{_subject(token[0])}{_end(token[1:])}"


def _review_pair(token: str) -> Row:
    return {"prompt": _subject(token[0]), "chosen": _end(token[1:4]), "rejected": _end(token[4:7])}


def _subject(letter: str) -> str:
    return PHRASES[letter].capitalize()


def _end(token: str) -> str:
    verdict, subject, second = (PHRASES[letter] for letter in token)
    return f" {verdict}, and {subject} {second}."


def main(folder: Path) -> None:
    for name, rows in files().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA)
