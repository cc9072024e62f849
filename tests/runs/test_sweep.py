"""What is left and said at the end of a sweep."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import Interrupted, RunError, StopSignal
from alignkit.launch import launch
from alignkit.launch.run import _Launched
from alignkit.runs.lock import hold
from alignkit.runs.sweep import SweptRun, conclude_sweep, mask_sweep
from alignkit.stages.sft import run as sft
from alignkit.training.signals import stops_raised


def swept(name: str, result: dict[str, Any] | None, problem: str = "") -> SweptRun:
    """A run of the sweep, with its record where it has a result."""
    folder = Path("sw") / name
    folder.mkdir(parents=True)
    if result is not None:
        (folder / "run.json").write_text(json.dumps({"status": "finished", "result": result}))
    return SweptRun([f"seed={name}"], folder, problem)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_runs_with_their_figure_the_best_one_marked(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        swept("0", {"eval_loss": {"first": 6.0, "last": 4.5}, "train_loss": {"last": 1.0}}),
        swept("1", None, "seed is wrong\nit is"),
        swept("2", {"eval_loss": {"first": 6.0, "last": 4.25}, "train_loss": {"last": 2.0}}),
        swept("3", {"eval_loss": {"first": 6.0, "last": float("nan")}}),
    ]
    record = conclude_sweep(Path("sw"), "sft", runs)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "run   overrides  eval loss",
        "sw/0  seed=0     4.5000",
        "sw/1  seed=1     seed is wrong\\nit is",
        "sw/2  seed=2     4.2500  the best",
        "sw/3  seed=3     nan",
    ]
    assert json.loads(Path("sw/sweep.json").read_text()) | {"runs": []} == record | {"runs": []}
    assert record["best"] == "sw/2"
    assert record["runs"][:2] == [
        {"folder": "sw/0", "overrides": ["seed=0"], "value": 4.5, "problem": None},
        {"folder": "sw/1", "overrides": ["seed=1"], "value": None, "problem": "seed is wrong\nit is"},
    ]


def test_no_secret_stays_in_what_hydra_writes() -> None:
    Path("sw").mkdir()
    file = Path("sw/multirun.yaml")
    file.write_text(
        "hydra: {overrides: {task: [train.hub_token=hf_abc]}}\nseed: 0\ntrain: {hub_token: hf_abc, run_name: ä}\n"
    )
    mask_sweep(Path("sw"))
    assert file.read_text() == "seed: 0\ntrain:\n  hub_token: '***'\n  run_name: ä\n"


@pytest.mark.parametrize(
    ("results", "figure", "best"),
    [
        ([{"eval_score": {"last": 1.0}}, {"eval_score": {"last": 2.0}}], "eval_score", "sw/1"),
        ([{"objective/score": {"last": 1.0}}, {"objective/score": {"last": -2.0}}], "objective/score", "sw/0"),
        ([{"train_loss": {"last": 1.0}, "kept_step": 3}, {"train_loss": {"last": 2.0}}], "train_loss", "sw/0"),
        ([{}, {}], None, None),
    ],
)
def test_scores_are_best_where_they_are_highest(results: list[Any], figure: str | None, best: str | None) -> None:
    record = conclude_sweep(Path("sw"), "ppo", [swept(str(n), result) for n, result in enumerate(results)])
    assert (record["figure"], record["best"]) == (figure, best)


def test_a_signal_says_how_all_runs_of_a_sweep_go_on() -> None:
    stopped = Interrupted(15, "SIGTERM: stopped; go on with resume=true")
    launched = _Launched(
        "sft", {}, None, [], {"seed"}, Path("sw"), [swept("0", None, "SIGTERM")], [(Path("sw/0"), stopped)]
    )
    with pytest.raises(Interrupted) as caught:
        launched.record()
    assert str(caught.value) == (
        "SIGTERM: stopped; go on with resume=true; for all runs of the sweep go on with resume=auto, "
        "which also starts the others"
    )
    assert caught.value.exit_status == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("how", ["between them", "swallowed in the first"])
def test_a_signal_between_two_runs_ends_the_sweep_in_a_line(
    number: signal.Signals, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def announced(run: SweptRun) -> None:
        if run.folder.name == "1":
            os.kill(os.getpid(), number)

    def run(job: Any, folder: Path, **_: Any) -> None:
        (folder / "run.json").write_text('{"status": "finished", "result": {"eval_loss": {"last": 1.0}}}')
        if how == "swallowed in the first":
            with suppress(BaseException):
                os.kill(os.getpid(), number)

    monkeypatch.setattr(sft, "run", run)
    if how == "between them":
        monkeypatch.setattr("alignkit.launch.run.announce", announced)
    words = ["name=sw", "model=tiny_gpt2", "template=instruction", "data.path=rows.jsonl", "seed=1,2,3"]
    Path("rows.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    with stops_raised(), pytest.raises(Interrupted) as caught:
        launch("sft", words, multirun=True)
    assert str(caught.value) == (
        f"{number.name}: stopped between two runs of the sweep; for all runs of the sweep go on with resume=auto, "
        "which also starts the others"
    )
    assert caught.value.exit_status == 128 + number
    record = json.loads(Path("runs/sft/sw/sweep.json").read_text())
    assert [run["problem"] for run in record["runs"]][:2] == [None, "not begun"]


def test_a_signal_before_a_run_that_is_alone_is_not_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft, "run", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    Path("rows.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    with stops_raised(), pytest.raises(StopSignal):
        launch("sft", ["name=a", "model=tiny_gpt2", "template=instruction", "data.path=rows.jsonl"])


def test_two_sweeps_do_not_share_the_runs_of_one_folder() -> None:
    Path("rows.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    words = ["name=sw", "model=tiny_gpt2", "template=instruction", "data.path=rows.jsonl", "seed=1,2", "overwrite=true"]
    folder = Path("runs/sft/sw")
    refused = pytest.raises(
        RunError, match=r"^runs/sft/sw is being written by this process, \d+: wait until it has ended"
    )
    with hold(folder, folder / ".lock"), refused:
        launch("sft", words, multirun=True)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []
