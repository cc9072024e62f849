"""`alignkit score`: pairs and rows, each with the score its reward run gives, and nothing lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit.commands.score import run
from alignkit.errors import ConfigError, DataError
from alignkit.launch import compose_job
from alignkit.stages.reward import run as reward

PAIRS = [{"prompt": f"Say {n}.", "chosen": f"{n}!", "rejected": "no" * (1 + n % 3)} for n in range(100, 124)]
OTHERWISE = [{"prompt": pair["prompt"], "good": pair["chosen"], "bad": pair["rejected"]} for pair in PAIRS]


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in OTHERWISE))
    words = ["model=tiny_gpt2", "template=instruction", f"data.path={folder / 'pairs.jsonl'}", "train.max_steps=20"]
    words += ["data.columns={chosen: good, rejected: bad}"]
    reward.run(compose_job("reward", [*words, "train.learning_rate=1e-3", "train.report_to=none"]), folder / "run")
    return folder / "run"


@pytest.fixture
def score(
    reward_run: Path, tmp_path: Path, write_rows: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[list[dict[str, Any]], str]]:
    """Score rows: the lines written, and what was said beside them."""

    def call(rows: list[Any], *words: str, pairs: bool) -> tuple[list[dict[str, Any]], str]:
        path = write_rows(rows, "given.jsonl")
        job = compose_job("score", [*words], model={"name": str(reward_run)}, data={"path": str(path)})
        run(job, pairs=pairs, out=None)
        out, err = capsys.readouterr()
        return [json.loads(line) for line in out.splitlines()], err

    return call


def test_pairs_get_both_scores_and_the_figures_are_said(score: Any) -> None:
    lines, said = score(PAIRS, pairs=True)
    assert [line["source"].rpartition(":")[2] for line in lines] == [str(i) for i in range(1, 25)]
    for line in lines:
        assert line["margin"] == line["chosen_score"] - line["rejected_score"] > 0
    assert "accuracy     100.0% (86.2% to 100.0%)" in said
    assert "longer wins  50.0%" in said


def test_pairs_are_read_with_the_columns_of_the_training_where_they_need_them(score: Any) -> None:
    lines, said = score(OTHERWISE, pairs=True)
    assert lines == score(PAIRS, pairs=True)[0]
    assert "given.jsonl: columns {chosen: good, rejected: bad}, as in the training of " in said


def test_rows_come_back_with_the_score_that_their_pair_has(score: Any) -> None:
    pairs, _ = score(PAIRS, pairs=True)
    rows = [{"id": n, "prompt": pair["prompt"], "completion": pair["chosen"]} for n, pair in enumerate(PAIRS)]
    lines, said = score(rows, "batch_size=5", pairs=False)
    assert [{key: line[key] for key in ("id", "prompt", "completion")} for line in lines] == rows
    assert [line["score"] for line in lines] == pytest.approx([pair["chosen_score"] for pair in pairs], abs=2e-2)
    assert "24 rows, mean score" in said


def test_a_row_that_cannot_be_scored_says_so_where_its_score_would_be(score: Any) -> None:
    rows = [{"prompt": "Say 1.", "completion": "1!"}, {"prompt": "Say 2.", "completion": "2" * 600}]
    lines, said = score(rows, pairs=False)
    assert isinstance(lines[0]["score"], float)
    assert (lines[1]["score"], lines[1]["reason"]) == (None, "too_long")
    assert "dropped: too_long" in said


def test_a_label_is_no_reason_to_leave_a_row_out(score: Any) -> None:
    rows = [
        {"prompt": "Say 1.", "completion": "1!", "label": True},
        {"prompt": "Say 2.", "completion": "no", "label": False},
        {"prompt": "Say 3.", "completion": "3!", "label": "who knows"},
    ]
    lines, said = score(rows, pairs=False)
    assert [isinstance(line["score"], float) for line in lines] == [True] * 3
    assert [line["label"] for line in lines] == [True, False, "who knows"]
    assert "3 rows, mean score" in said
    _, said = score([*rows, {"prompt": "Say 4.", "completion": "4" * 600, "label": False}], pairs=False)
    assert "columns not used: label" in said


def test_the_limit_is_over_all_sources_as_in_training(reward_run: Path, tmp_path: Path) -> None:
    for name, count in (("a", 2), ("b", 4), ("c", 1)):
        rows = [{"prompt": f"Say {name}.", "completion": f"{name}{n}"} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [str(tmp_path / f"{name}.jsonl") for name in "abc"]
    job = compose_job("score", ["data.limit=3"], model={"name": str(reward_run)}, data={"path": paths})
    run(job, pairs=False, out=tmp_path / "scores.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [line["completion"] for line in lines] == ["a0", "a1", "b0"]
    assert all(isinstance(line["score"], float) for line in lines)


def test_what_cannot_be_scored_at_all_is_refused(score: Any, reward_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the row has a 'score' already"):
        score([{"prompt": "a", "completion": "b", "score": 1}], pairs=False)
    (tmp_path / "there.jsonl").write_text("")
    job = compose_job("score", ["data.path=x", "data.streaming=true"], model={"name": str(reward_run)})
    with pytest.raises(ConfigError, match=r"data\.streaming=true: rows are not read as training goes; leave it out"):
        run(job, pairs=False, out=None)
    job = compose_job("score", ["data.path=x", "data.eval_fraction=0.1"], model={"name": str(tmp_path)})
    with pytest.raises(ConfigError) as caught:
        run(job, pairs=True, out=tmp_path / "there.jsonl")
    assert [line.split(":")[0] for line in caught.value.problems] == [
        "data.path",
        "data.eval_path and data.eval_fraction have no effect",
        f"--out {tmp_path / 'there.jsonl'} exists already",
        "model.name",
    ]


def test_a_file_is_written_whole(reward_run: Path, tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    path = write_rows(PAIRS, "given.jsonl")
    job = compose_job("score", [], model={"name": str(reward_run)}, data={"path": str(path)})
    run(job, pairs=True, out=tmp_path / "new/scores.jsonl")
    assert len((tmp_path / "new/scores.jsonl").read_text().splitlines()) == 24
