"""The data files that ship with alignkit, found wherever it is installed."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

# The keys are older than the file names. Records of runs hold `${shipped:train.jsonl}`, and a resumed run compares its
# settings with the record as text: the keys stay, the files may be renamed.
_FILES = {
    "train.jsonl": "word_tasks.jsonl",
    "heldout.jsonl": "word_tasks_heldout.jsonl",
    "pairs.jsonl": "manners_pairs.jsonl",
    "heldout_pairs.jsonl": "manners_pairs_heldout.jsonl",
    "reviews.jsonl": "film_reviews.jsonl",
    "heldout_reviews.jsonl": "film_reviews_heldout.jsonl",
    "review_pairs.jsonl": "film_review_pairs.jsonl",
    "heldout_review_pairs.jsonl": "film_review_pairs_heldout.jsonl",
}


def shipped_file(key: str) -> Path:
    """Return the path of the file that `${shipped:KEY}` means in a data section; other names mean themselves."""
    return Path(str(resources.files("alignkit"))) / "demo" / "data" / _FILES.get(key, key)
