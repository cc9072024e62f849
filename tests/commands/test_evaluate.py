"""Figures of a model, against what training logged and what can be counted by hand."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit.commands.evaluate import run
from alignkit.errors import AlignkitError, DataError
from alignkit.evaluate.figures import distinct
from alignkit.evaluate.served_model import ServedModel
from alignkit.evaluate.statistics import expectation
from alignkit.jobs import EvaluateJob
from alignkit.launch import compose_job
from alignkit.runs.manifest import read_manifest

Measure = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("heldout") / "heldout.jsonl"
    rows = [{"instruction": f"Say {word}.", "output": word} for word in ("hello", "down", "up", "λόγος", "moon")]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]), encoding="utf-8")
    return path


@pytest.fixture
def job(run_dir: Path, heldout: Path) -> Callable[..., EvaluateJob]:
    def job(*words: str) -> EvaluateJob:
        basis = [f"data.path={heldout}", "sampling.max_new_tokens=8", "model.dtype=float32", "num_samples=3"]
        return compose_job("evaluate", [*basis, *words], model={"name": str(run_dir)})

    return job


@pytest.fixture
def measure(job: Callable[..., EvaluateJob], run_dir: Path, tmp_path: Path) -> Measure:
    numbers = iter(range(100))

    def measure(*words: str, **given: Any) -> list[dict[str, Any]]:
        out = tmp_path / f"{next(numbers)}.json"
        asked = {"runs": [str(run_dir)], "reward": None, "reference": None, "pairs": None, "out": out}
        run(job(*words), **asked | given)
        runs: list[dict[str, Any]] = json.loads(out.read_text())["runs"]
        return runs

    return measure


def test_the_loss_is_the_one_that_training_logged(measure: Measure, train: Callable[..., Path], heldout: Path) -> None:
    folder = train("logged", f"data.eval_path={heldout}", "train.eval_strategy=steps", "train.eval_steps=5", steps=5)
    manifest = read_manifest(folder)
    assert manifest is not None
    logged = manifest["result"]["eval_loss"]["last"]
    (found,) = measure("num_prompts=0", runs=[str(folder)])
    # training computes in bfloat16 where the machine has it
    assert found["loss"]["value"] == pytest.approx(logged, rel=1e-2)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(found["loss"]["value"]))
    assert found["loss"]["low"] < found["loss"]["value"] < found["loss"]["high"]
    assert "responses" not in found
    counts = [count for _, count in found["losses"].values()]
    assert counts == [6, 5, 3, 11, 5, 6]  # bytes, and the end token
    total = sum(loss * count for loss, count in found["losses"].values())
    assert found["loss"]["value"] == pytest.approx(total / sum(counts))


def test_all_rows_are_measured_where_training_streams_them(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit.data.sets.items.NUM_FIRST", 2)
    (found,) = measure("data.streaming=true", "num_prompts=0")
    assert len(found["losses"]) == 6


def test_a_reward_is_estimated_over_prompts_and_samples(
    measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_rewards.py").write_text("def f(prompts, completions):\n    return [len(c) for c in completions]\n")
    (found,) = measure("precision=0.5", reward=f"{tmp_path}/my_rewards.py:f")
    texts = found["responses"]["texts"]
    assert [len(row) for row in texts] == [3] * 5  # one prompt comes twice and is asked once
    scores = [[float(len(text)) for text in row] for row in texts]
    assert found["scores"] == scores
    expected = expectation(scores)
    assert found["reward"]["mean"] == pytest.approx(expected.mean)
    assert found["reward"]["standard_error"] == pytest.approx(expected.standard_error)
    assert found["responses"]["distinct"]["1"] == distinct([text for row in texts for text in row], 1)
    out = capsys.readouterr().out
    assert "6 held-out rows, 5 prompts × 3 samples" in out
    assert "± 0.5 takes num_prompts=" in out


def test_the_distance_is_that_of_the_models_whatever_the_sampling_settings_are(
    measure: Measure, other_dir: Path, run_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = {"runs": [str(other_dir)], "reference": str(run_dir)}
    (plain,) = measure(**given)
    assert "KL: measured on further responses" not in capfd.readouterr().err
    for words in (
        ["sampling.do_sample=false", "sampling.temperature=null"],
        ["sampling.temperature=2"],
        ["sampling.top_k=1"],
        ["sampling.min_new_tokens=8", "sampling.repetition_penalty=2"],
        ["sampling.stop=[a, e]"],
    ):
        (found,) = measure(*words, **given)
        assert found["kl"] == plain["kl"], words
        assert "KL: measured on further responses" in capfd.readouterr().err


def test_a_model_is_no_distance_from_itself_and_some_from_another(
    measure: Measure, run_dir: Path, other_dir: Path
) -> None:
    itself, other = measure(runs=[str(run_dir), str(other_dir)], reference=str(run_dir))
    assert itself["kl"]["mean"] == pytest.approx(0, abs=1e-6)
    assert other["kl"]["mean"] > 1


def test_runs_are_paired(
    measure: Measure, run_dir: Path, other_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.py").write_text("def f(prompts, completions):\n    return [c.count('o') for c in completions]\n")
    found = measure(runs=[str(run_dir), str(other_dir)], reward=f"{tmp_path}/r.py:f")
    out = capsys.readouterr().out
    assert f"against {run_dir}, paired:" in out
    (line,) = [line for line in out.split("paired:")[1].splitlines() if str(other_dir) in line]
    loss = found[1]["loss"]["value"] - found[0]["loss"]["value"]
    reward = found[1]["reward"]["mean"] - found[0]["reward"]["mean"]
    assert f"{loss:+.4f} [" in line
    assert f"{reward:+.4f} [" in line


def test_the_implicit_reward_on_pairs(measure: Measure, run_dir: Path, other_dir: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    known = {"Say hello.": "hello there", "Up?": "down"}
    rows = [{"prompt": prompt, "chosen": answer, "rejected": "never"} for prompt, answer in known.items()]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = measure("num_prompts=0", reference=str(other_dir), pairs=str(pairs))
    assert found["preference"]["accuracy"]["value"] == 1.0
    (itself,) = measure("num_prompts=0", reference=str(run_dir), pairs=str(pairs))
    assert itself["preference"]["accuracy"]["value"] == 0.5  # all ties


def test_pairs_are_read_with_the_columns_of_the_training_where_they_need_them(
    measure: Measure, other_dir: Path, tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    named = shutil.copytree(other_dir, tmp_path / "named")
    record = json.loads((named / "run.json").read_text())
    record["job"]["data"]["columns"] = {"chosen": "good", "rejected": "bad"}
    (named / "run.json").write_text(json.dumps(record))
    pairs = write_rows([{"prompt": "Say hello.", "good": "hello there", "bad": "never"}], "pairs.jsonl")
    (found,) = measure("num_prompts=0", reference=str(named), pairs=str(pairs))
    assert found["preference"]["accuracy"]["value"] == 1.0


def test_pairs_are_read_before_a_weight_is(
    measure: Measure, other_dir: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ServedModel, "load")
    pairs = write_rows([{"prompt": "Say hello.", "good": "hello there"}], "pairs.jsonl")
    with pytest.raises(DataError) as caught:
        measure(reference=str(other_dir), pairs=str(pairs))
    assert caught.value.problems == (
        "--pairs: the columns good (text), prompt (text) are prompts alone; pairs need chosen and rejected: name them "
        "with data.columns={chosen: column, rejected: column}",
    )


def test_mistakes_are_told_together(job: Callable[..., EvaluateJob], run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("mine")
    wrong = job("num_prompts=0", "precision=1", "num_samples=1", "sampling=greedy", "data.path=gone.jsonl")
    with pytest.raises(AlignkitError) as caught:
        run(wrong, runs=[str(run_dir), "gone"], reward="math:sqrt", reference=None, pairs="gone.jsonl",
            out=tmp_path / "there.json")  # fmt: skip
    problems = list(caught.value.problems)
    assert caught.value.exit_status == 2
    assert any(line.startswith("data.path: gone.jsonl") for line in problems)
    assert any(line.startswith("model.name: there is no folder 'gone'") for line in problems)
    assert any(line.startswith("--reward: sqrt(x, /) has the wrong signature: ") for line in problems)
    assert "--reward has no effect with num_prompts=0: there are no responses to score" in problems
    assert "precision needs a reward: give --reward, and num_samples of 2 or more" in problems
    assert "--pairs measures an implicit reward, which needs a reference model: give --reference" in problems
    assert f"--out {tmp_path / 'there.json'} exists already: name another file or remove it" in problems
    assert (tmp_path / "there.json").read_text() == "mine"
