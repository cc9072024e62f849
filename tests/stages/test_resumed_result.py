"""A run that ended while its result was written says after a resume what it would have said unbroken."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from alignkit.training import checkpoints

HELD_OUT = ["data.eval_fraction=0.2", "model=tiny_gpt2"]
CLOCKS = ("per_second", "runtime")


class Killed(BaseException):
    """Ends a run where a signal would."""


def numbers(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith(CLOCKS)} for line in lines]


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_a_run_killed_in_its_final_save_records_its_last_evaluation(
    stage: str, job: Callable[..., Any], pair_job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = import_module(f"alignkit.stages.{stage}.run").run

    def begin(name: str, *words: str) -> None:
        words = (*HELD_OUT, *words, *([] if stage == "reward" else ["samples=0"]))
        run(job(*words) if stage == "sft" else pair_job(stage, "template=instruction", *words), Path(name))

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    begin("whole")
    with monkeypatch.context() as patch:
        patch.setattr("alignkit.training.session.save_model", killed)
        with pytest.raises(Killed):
            begin("killed")
    begin("killed", "resume=true")
    records = [json.loads(Path(name, "run.json").read_text()) for name in ("whole", "killed")]
    assert records[0]["status"] == records[1]["status"] == "finished"
    assert records[0]["result"] == records[1]["result"]
    assert numbers(Path("whole")) == numbers(Path("killed"))


@pytest.mark.parametrize("layout", ["packed", "grouped"])
@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_a_resumed_run_counts_on(
    stage: str, layout: str, pair_job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = import_module(f"alignkit.stages.{stage}.run").run
    seal = checkpoints.seal

    def sealed_and_killed(*args: Any, **rest: Any) -> None:
        seal(*args, **rest)
        raise Killed

    def begin(name: str, *words: str) -> None:
        words = (*HELD_OUT, *words, "train.save_steps=2", "train.logging_steps=3", f"data.batching={layout}")
        run(pair_job(stage, "template=instruction", *words), Path(name))

    begin("whole")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "seal", sealed_and_killed)
        with pytest.raises(Killed):
            begin("killed")
    begin("killed", "resume=true")
    assert numbers(Path("killed")) == numbers(Path("whole"))
    counts = [line for line in numbers(Path("killed")) if "tokens" in line]
    assert [line["tokens"] for line in counts] == [line["num_tokens"] for line in counts]  # ours and upstream's
