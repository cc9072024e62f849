"""The files that ship: every key of a data section, today's and those in the records of old runs, has its file."""

import re

import pytest

from alignkit.data.files.shipped import shipped_file
from alignkit.launch import compose_job

# As records of runs hold them: none may be renamed.
KEYS = [
    f"{part}{name}.jsonl"
    for part, name in [
        ("", "train"),
        ("", "heldout"),
        *((part, name) for name in ("pairs", "reviews", "review_pairs") for part in ("", "heldout_")),
    ]
]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_an_old_record_is_a_file(key: str) -> None:
    assert shipped_file(key).is_file()


def test_a_group_means_the_file() -> None:
    job = compose_job("sft", ["data=demo", "model=tiny_gpt2"])
    assert job.data.path == str(shipped_file("train.jsonl"))


def test_the_groups_name_no_other_keys() -> None:
    folder = shipped_file("train.jsonl").parents[2] / "conf" / "data"
    found = [key for path in folder.glob("*.yaml") for key in re.findall(r"\$\{shipped:(.*?)\}", path.read_text())]
    assert sorted(found) == sorted(KEYS)
