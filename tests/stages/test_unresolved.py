"""What an interpolation stands for is used, and not written out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit.launch import launch

SECRET = "hf_never_written_out"
POWER = "1.1357924"


def test_no_file_of_a_run_holds_what_an_interpolation_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNKIT_TEST_TOKEN", SECRET)
    write_rows([{"instruction": f"Say {n}.", "output": f"{n}"} for n in range(8)])
    seen: list[Any] = []
    monkeypatch.setattr("alignkit.stages.sft.run.kept_step", lambda trainer: seen.append(trainer.args))
    name, nested = "train.run_name='my ${oc.env:ALIGNKIT_TEST_TOKEN}'", "train.lr_scheduler_kwargs"
    words = ["model=tiny_gpt2", "data.path=rows.jsonl", "samples=0", "train.max_steps=1", "hydra.run.dir=out", name]
    monkeypatch.setenv("ALIGNKIT_TEST_POWER", POWER)
    power = f"+{nested}.power='${{oc.decode:${{oc.env:ALIGNKIT_TEST_POWER}}}}'"
    launch("sft", [*words, power, "train.lr_scheduler_type=polynomial"])
    assert (seen[0].run_name, seen[0].lr_scheduler_kwargs) == (f"my {SECRET}", {"power": float(POWER)})
    files = [path for path in Path("out").rglob("*") if path.is_file()]
    assert [path for path in files if any(one.encode() in path.read_bytes() for one in (SECRET, POWER))] == []
    (path,) = Path("out/checkpoints").glob("*/training_args.json")
    written = json.loads(path.read_text())
    assert written["run_name"] == "my ${oc.env:ALIGNKIT_TEST_TOKEN}"
    assert written["max_steps"] == 1
