"""Sealed, damaged, rotated, left over: what is told apart on disk."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit.training.checkpoints import (
    checkpoints,
    clear_leftovers,
    damage,
    newest_sound,
    rotate,
    seal,
)


def sealed(run_dir: Path, step: int, *, resumable: bool = True, content: str = "weights") -> Path:
    partial = run_dir / f"checkpoint-{step}.partial"
    (partial / "shards").mkdir(parents=True)
    (partial / "model.bin").write_text(content)
    (partial / "shards" / "one.bin").write_text("optimizer")
    (partial / "model.bin").chmod(0o600)
    seal(partial, resumable=resumable)
    return run_dir / f"checkpoint-{step}"


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.iterdir())


def test_sealing_gives_the_name_checksums_and_modes(tmp_path: Path) -> None:
    folder = sealed(tmp_path, 5)
    assert names(tmp_path) == ["checkpoint-5"]
    assert json.loads((folder / "checksums.json").read_text()) == {
        "resumable": True,
        "files": {
            "model.bin": {"size": 7, "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"},
            "shards/one.bin": {"size": 9, "sha256": "23732d00643137c9b14b11bdb90f47a8e97b4da42cdfc0887912f4ff732c689c"},
        },
    }
    assert (folder / "model.bin").stat().st_mode == (folder / "checksums.json").stat().st_mode
    assert damage(folder) == ""


def test_sealing_replaces_a_checkpoint_of_the_same_step(tmp_path: Path) -> None:
    sealed(tmp_path, 5, content="older")
    folder = sealed(tmp_path, 5, content="newer")
    assert (folder / "model.bin").read_text() == "newer"
    assert names(tmp_path) == ["checkpoint-5"]


def cut(folder: Path) -> None:
    (folder / "model.bin").write_text("weigh")


def flip(folder: Path) -> None:
    (folder / "model.bin").write_text("weightt")


def lose(folder: Path) -> None:
    (folder / "shards" / "one.bin").unlink()


def unseal(folder: Path) -> None:
    (folder / "checksums.json").unlink()


def scribble(folder: Path) -> None:
    (folder / "checksums.json").write_text('{"files": {')


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, "model.bin has 5 bytes instead of 7"),
        (flip, "model.bin is not what was written (its checksum differs)"),
        (lose, "shards/one.bin is missing"),
        (unseal, "it was never sealed (checksums.json is missing)"),
        (scribble, "its checksums.json cannot be read"),
    ],
)
def test_damage_is_found_named_and_passed_over(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    sound = sealed(tmp_path, 9)
    spoil(sealed(tmp_path, 10))
    assert damage(tmp_path / "checkpoint-10") == words
    assert newest_sound(tmp_path) == (sound, [f"checkpoint-10: {words}"])


def test_the_newest_is_the_highest_step_not_the_last_in_the_alphabet(tmp_path: Path) -> None:
    sealed(tmp_path, 9)
    newest = sealed(tmp_path, 10)
    assert newest_sound(tmp_path) == (newest, [])


def test_weights_alone_are_sound_but_cannot_be_resumed(tmp_path: Path) -> None:
    sealed(tmp_path, 5, resumable=False)
    words = "it holds weights only (train.save_only_model=true), no optimizer to go on with"
    assert damage(tmp_path / "checkpoint-5") == ""
    assert newest_sound(tmp_path) == (None, [f"checkpoint-5: {words}"])


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    assert newest_sound(tmp_path / "absent") == (None, [])


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [5, 10, 15, 20, 25]),
        (2, None, [15, 20]),  # 25 is beyond the newest: a resume has passed it over
        (1, None, [20]),
        (2, 5, [5, 20]),
        (1, 5, [5, 20]),  # never the best, never the newest
    ],
)
def test_rotation_keeps_the_newest_and_the_best(
    tmp_path: Path, limit: int | None, best: int | None, left: list[int]
) -> None:
    for step in (5, 10, 15, 20, 25):
        sealed(tmp_path, step)
    newest = tmp_path / "checkpoint-20"
    rotate(tmp_path, limit=limit, newest=newest, keep={newest, *([tmp_path / f"checkpoint-{best}"] if best else [])})
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in left]
    assert len(names(tmp_path)) == len(left)


def test_leftovers_go_but_a_sealed_one_only_lacked_its_name(tmp_path: Path) -> None:
    sealed(tmp_path, 5)
    sealed(tmp_path, 10).rename(tmp_path / "checkpoint-10.partial")  # killed just before its renaming
    (tmp_path / "checkpoint-15.partial").mkdir()  # killed while writing
    sealed(tmp_path, 1).rename(tmp_path / "checkpoint-1.discarded")  # killed while removing
    (tmp_path / "checkpoint-x").mkdir()
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-5", "checkpoint-x"]
    assert newest_sound(tmp_path) == (tmp_path / "checkpoint-10", [])
