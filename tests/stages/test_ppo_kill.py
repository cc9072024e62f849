"""`alignkit ppo` killed at random moments, some of them in the middle of a save, is the run that was never killed."""

import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

UPDATES = 24
SMALLER = ["model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32"]
WORDS = [
    *SMALLER,
    *("template=instruction", "data.path=rows.jsonl", "data.eval_fraction=0.25", "train.report_to=none", "samples=1"),
    *("reward=[{function: 'rewards.py:length'}]", f"ppo.num_updates={UPDATES}", "ppo.num_prompts=8"),
    *("ppo.num_mini_batches=2", "train.per_device_train_batch_size=4", "sampling.max_new_tokens=6"),
    *("train.learning_rate=1e-3", "train.save_steps=2", "train.eval_steps=2", "train.lr_scheduler_type=cosine"),
    # everything that a checkpoint has to hold
    *(
        "ppo.kl_target=3",
        "ppo.kl_horizon=100",
        "ppo.score_scaling=running",
        "sampling.temperature={start: 1, end: 1.5}",
    ),
]
GROUPS = ["ppo.num_prompts=2", "ppo.num_generations=4", "ppo.kl_target=null", "ppo.refill_flat_groups=1"]
# What `WORDS` says, but for what has no meaning beside an estimator; one with LoRA, the others with every weight.
KINDS = {
    "full": [],
    "lora": ["lora=ppo"],
    "grpo": ["ppo.advantage=grpo", *GROUPS, "ppo.score_scaling=none", "lora=ppo"],
    "dr_grpo": ["ppo.advantage=dr_grpo", *GROUPS, "ppo.kl_coef=0"],
    "rloo": ["ppo.advantage=rloo", *GROUPS, "ppo.kl_target=3"],
    "reinforce": ["ppo.advantage=reinforce", "ppo.gamma=0.9"],
    "reinforce_baseline": ["ppo.advantage=reinforce_baseline", *GROUPS],
}
QUICK = ("full", "grpo")
REWARDS = "def length(prompts, completions, **columns):\n    return [len(c) / 10 for c in completions]\n"
TIMED = ("seconds/", "tokens_per_second")


@pytest.fixture(scope="module")
def server(fork_server: Any) -> Any:
    rows = [{"instruction": f"Say {n}.", "output": str(n)} for n in range(24)]
    (fork_server.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (fork_server.folder / "rewards.py").write_text(REWARDS)
    return fork_server


def bits(run_dir: Path) -> dict[str, str]:
    """Of the result and of the last checkpoint: policy, value head, optimizer, schedule, controller, statistics."""
    files = [*run_dir.glob("*.safetensors"), *run_dir.glob("base/*.safetensors")]
    files += [run_dir / "checkpoints" / f"checkpoint-{UPDATES}" / name for name in LAST]
    files += run_dir.glob(f"checkpoints/checkpoint-{UPDATES}/value_head.safetensors")
    found = {str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    has_critic = json.loads((run_dir / "run.json").read_text())["job"]["ppo"]["advantage"] == "gae"
    assert len(found) >= 1 + len(LAST) + 2 * has_critic
    return found


LAST = ("optimizer.pt", "scheduler.pt", "ppo_state.json")


def measured(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(TIMED)} for line in lines]


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_killed_at_random_moments_and_resumed_is_never_killed(server: Any, kind: str) -> None:
    num_kills = int(os.environ.get("ALIGNKIT_TEST_KILLS", "4"))
    whole, killed = (server.folder / "runs/ppo" / f"{name}-{kind}" for name in ("whole", "killed"))
    began = time.monotonic()
    ended = server.run("ppo", f"name={whole.name}", *WORDS, *KINDS[kind])
    assert ended.status == 0, ended.said
    seconds = time.monotonic() - began

    draw, in_a_save, resume = random.Random(kind), 0, []
    for number in range(num_kills):
        pid = server.start("ppo", f"name={killed.name}", *WORDS, *KINDS[kind], *resume)
        patience = time.monotonic() + draw.uniform(0.1, 1.2 / num_kills) * seconds
        in_save = number % 2 == 0  # hunts for the next save
        while Path(f"/proc/{pid}/stat").exists():
            if time.monotonic() > patience and (not in_save or list(killed.glob("checkpoints/*.partial"))):
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.0005)
        ended = server.wait()
        if ended.status == 0:
            break  # it was done before; what follows is true all the same
        assert ended.status == -signal.SIGKILL, ended.said  # alive when it was killed
        in_a_save += bool(list(killed.glob("checkpoints/*.partial")))
        resume = ["resume=true"] if (killed / "run.json").exists() else []
    if ended.status:
        ended = server.run("ppo", f"name={killed.name}", *WORDS, *KINDS[kind], *resume)
        assert ended.status == 0, ended.said
    assert in_a_save
    assert bits(killed) == bits(whole)
    assert measured(killed) == measured(whole)
    rollouts = [(run / "rollouts.jsonl").read_bytes() for run in (killed, whole)]
    assert rollouts[0] == rollouts[1]
    assert (killed / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()


def test_sigterm_saves_after_the_update_and_can_be_resumed(server: Any) -> None:
    whole, stopped = (server.folder / "runs/ppo" / name for name in ("whole-full", "stopped"))
    if not (whole / "model.safetensors").exists():
        assert server.run("ppo", f"name={whole.name}", *WORDS).status == 0
    at = stopped / "checkpoints" / "checkpoint-4"
    ended = server.run("ppo", f"name={stopped.name}", *WORDS, at=at, number=signal.SIGTERM)
    assert ended.status == 128 + signal.SIGTERM
    assert "which is saved: go on with resume=true" in ended.said.splitlines()[-1]
    assert json.loads((stopped / "run.json").read_text())["status"] == "interrupted"
    ended = server.run("ppo", f"name={stopped.name}", *WORDS, "resume=true")
    assert ended.status == 0, ended.said
    assert bits(stopped) == bits(whole)
    assert measured(stopped) == measured(whole)
