"""Stages that are signalled at any moment say so in a line, and are resumed to the bits of one that never was."""

import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

SMALLER = ["model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32"]
BASIS = [*SMALLER, "template=instruction", "data.eval_fraction=0.25", "train.report_to=none"]
BASIS += ["train.learning_rate=1e-3", "train.per_device_train_batch_size=4"]
REWARD = "def length(prompts, completions):\n    return [len(c) / 10 for c in completions]\n"
OF_STAGE = {
    "reward": ["data.path=pairs.jsonl", "train.max_steps=60", "train.save_steps=20"],
    "ppo": [
        *("data.path=rows.jsonl", "reward=[{function: 'rewards.py:length'}]", "samples=1", "sampling.max_new_tokens=6"),
        *("ppo.num_updates=16", "ppo.num_prompts=8", "ppo.num_mini_batches=2", "train.save_steps=4"),
    ],
}
NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture(scope="module")
def server(fork_server: Any) -> Any:
    rows = [{"instruction": f"Say {n}.", "output": str(n)} for n in range(24)]
    pairs = [{"prompt": f"Say {n}.", "chosen": str(n), "rejected": "no"} for n in range(36)]
    for name, content in (("rows", rows), ("pairs", pairs)):
        (fork_server.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (fork_server.folder / "rewards.py").write_text(REWARD)
    return fork_server


def bits(run_dir: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run_dir.glob("*.safetensors")}


def status(run_dir: Path) -> str:
    record = run_dir / "run.json"
    return str(json.loads(record.read_text())["status"]) if record.exists() else "not begun"


@pytest.mark.slow
@pytest.mark.parametrize("stage", OF_STAGE)
def test_signalled_at_random_moments_and_resumed_is_never_stopped(server: Any, stage: str) -> None:
    words = [stage, *BASIS, *OF_STAGE[stage]]
    whole, stopped = (server.folder / "runs" / stage / name for name in ("whole", "stopped"))
    began = time.monotonic()
    ended = server.run(*words, "name=whole")
    assert ended.status == 0, ended.said
    seconds = time.monotonic() - began

    draw, met = random.Random(stage), 0
    for _ in range(8):
        pid = server.start(*words, "name=stopped", "resume=auto")
        until, number = time.monotonic() + draw.uniform(0, 0.4) * seconds, draw.choice(NUMBERS)
        while time.monotonic() < until and status(stopped) != "finished":
            time.sleep(0.002)
        if status(stopped) == "finished":  # what comes while a process ends is nobody's any more
            server.wait()
            break
        os.kill(pid, number)
        ended, met = server.wait(), met + 1
        if ended.status == 0:
            break
        assert ended.status == 128 + number, ended.said
        assert ended.said.splitlines()[-1].startswith("alignkit: "), ended.said
        assert not any(words in ended.said for words in ("Traceback", "internal error", "Exception ignored"))
        assert status(stopped) in ("interrupted", "not begun")
    ended = server.run(*words, "name=stopped", "resume=auto")
    assert ended.status == 0, ended.said
    assert met >= 1
    assert bits(stopped) == bits(whole) != {}
