"""Runs and checkpoints that an earlier alignkit wrote go on, and serve, in this one.

`tests/fixtures/runs_made_before` was written by version 0.1 at commit 912f2c8: `killed` and `demo…` are runs whose
process got SIGKILL right after a checkpoint was sealed, `expected` holds the weights with which that version went on to
their end. Their `log.txt` and `rows.jsonl` are left out, and the adapter's base is named by a relative path.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from alignkit.choices import EvalGroups
from alignkit.commands import generate, score
from alignkit.config import DataConfig
from alignkit.evaluate.trained import held_out_groups
from alignkit.launch import compose_job, launch

MADE_BEFORE = Path(__file__).parents[1] / "fixtures" / "runs_made_before"
# An epsilon above rounding: Adam would make whole steps of the last bits in which two machines differ.
WORDS = [
    *("model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=8", "model.config.n_head=2"),
    *("model.config.n_inner=8", "model.config.n_positions=160", "train.report_to=none", "train.adam_epsilon=1e-3"),
    *("train.learning_rate=1e-2", "train.logging_steps=1", "train.per_device_train_batch_size=4", "samples=0"),
]
STEPS = ["train.max_steps=8", "train.save_steps=4"]
UNFINISHED = {
    "sft/killed": [*STEPS, "data.path=rows.jsonl", "lora=default"],
    "sft/demo": [*STEPS, "data=demo", "data.limit=24"],
    "dpo/demo_pairs": [*STEPS, "template=instruction", "data=demo_pairs", "data.limit=24"],
    "ppo/killed": [
        *("template=instruction", "lora=ppo", "data.path=rows.jsonl", "reward=[{function: 'rewards.py:length'}]"),
        *("ppo.num_updates=4", "ppo.num_prompts=8", "ppo.num_mini_batches=2", "sampling.max_new_tokens=6"),
        *("train.save_steps=2", "ppo.kl_target=3", "ppo.kl_horizon=100", "ppo.score_scaling=running"),
    ],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what was made, to stand in."""
    folder = tmp_path / "made_before"
    shutil.copytree(MADE_BEFORE, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_run_goes_on_to_the_weights_it_would_have_had(folder: Path, name: str) -> None:
    stage, _, run = name.partition("/")
    launch(stage, [f"name={run}", *WORDS, *UNFINISHED[name], "resume=true"])
    run_dir = folder / "runs" / name
    assert json.loads((run_dir / "run.json").read_text())["status"] == "finished"
    assert "going on from runs/" in (run_dir / "log.txt").read_text()  # not begun again
    expected = sorted((folder / "expected").glob(f"{stage}-{run}-*"))
    assert expected
    for path in expected:
        reached = load_file(run_dir / path.name.removeprefix(f"{stage}-{run}-"))
        assert_close(reached, load_file(path), atol=1e-5, rtol=0)


def test_an_unfinished_run_without_a_kl_penalty_goes_on(folder: Path) -> None:
    record = folder / "runs/ppo/killed/run.json"
    manifest = json.loads(record.read_text())
    manifest["job"]["ppo"] |= {"kl_coef": 0.0, "kl_target": None}
    assert manifest["job"]["ppo"]["max_kl"] == 100.0  # today it is null beside no penalty
    record.write_text(json.dumps(manifest))
    words = [word for word in UNFINISHED["ppo/killed"] if not word.startswith("ppo.kl_target")]
    launch("ppo", ["name=killed", *WORDS, *words, "ppo.kl_coef=0", "resume=true"])
    assert json.loads(record.read_text())["status"] == "finished"


def test_a_finished_run_generates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sampling=greedy", "sampling.max_new_tokens=8"]
    job = compose_job("generate", words, model={"name": "runs/sft/finished"})
    generate.run(job, prompts=["Say one and two."], prompts_path=None, out=None)
    assert "### Response:\ntttttttt\n" in capsys.readouterr().out


def test_a_finished_reward_adapter_scores(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model.dtype=float32"]  # where the machine computes in bfloat16, that would be the default
    job = compose_job("score", words, model={"name": "runs/reward/finished"}, data={"path": "pairs.jsonl"})
    score.run(job, pairs=True, out=None)
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["chosen_score"] == pytest.approx(0.154410, abs=1e-5)
    assert first["rejected_score"] == pytest.approx(0.172168, abs=1e-5)


def test_the_rows_that_a_run_holds_out_stay_those_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows were held out by whole prompts before `data.eval_groups` was there."""
    monkeypatch.chdir(tmp_path)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [
        {"messages": [{**turns[0], "content": f"Hi {number % 8}"}, turns[1]] * (1 + number % 3)} for number in range(24)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["name=run", *WORDS, "data.path=rows.jsonl", "data.eval_fraction=0.3", "train.max_steps=2"]
    words += ["train.save_steps=1", "template=chatml"]
    launch("sft", [*words, "data.eval_groups=prompt"])
    folder = Path("runs/sft/run")
    held_out = sorted(row["source"] for row in ledger(folder) if row["set"] == "eval")
    record = json.loads((folder / "run.json").read_text())
    assert record.pop("eval_groups") == "prompt"
    del record["job"]["data"]["eval_groups"]
    (folder / "run.json").write_text(json.dumps(record | {"status": "running"}))
    launch("sft", [*words, "resume=true"])
    assert sorted(row["source"] for row in ledger(folder) if row["set"] == "eval") == held_out
    assert json.loads((folder / "run.json").read_text())["eval_groups"] == "prompt"
    assert "rows are held out by whole prompts, as this run began" in (folder / "log.txt").read_text()
    assert held_out_groups(DataConfig("rows.jsonl", eval_fraction=0.3), ["runs/sft/run"]) is EvalGroups.prompt
    launch("sft", [*words, "overwrite=true"])
    assert sorted(row["source"] for row in ledger(folder) if row["set"] == "eval") != held_out
    assert json.loads((folder / "run.json").read_text())["eval_groups"] == "conversation"


def ledger(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
