"""`torchrun -m alignkit ppo` learns what one process learns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from alignkit.launch import launch

REWARDS = "def length(prompts, completions, **columns):\n    return [len(c) / 10 for c in completions]\n"
WORDS = [
    *("model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32", "samples=1"),
    *("template=instruction", "data.path=rows.jsonl", "data.eval_fraction=0.25", "train.report_to=none"),
    *("reward=[{function: 'rewards.py:length'}]", "ppo.num_updates=3", "ppo.num_prompts=8", "ppo.num_mini_batches=1"),
    # plain gradient steps: Adam's first ones divide rounding by rounding where a gradient is nearly zero
    *("sampling.max_new_tokens=6", "train.optim=sgd", "train.learning_rate=0.05", "ppo.score_scaling=running"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `one` and `two`, of as many processes: 8 completions at a time, and 4 on each."""
    folder = tmp_path_factory.mktemp("ppo-processes")
    rows = [{"instruction": f"Say {'very ' * (n % 3)}{n}.", "output": str(n)} for n in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(REWARDS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = subprocess.run(
        [*torchrun, "-m", "alignkit", "ppo", "name=two", *WORDS, "train.per_device_train_batch_size=4"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert two.returncode == 0, two.stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        launch("ppo", ["name=one", *WORDS, "train.per_device_train_batch_size=8"])
    return folder / "runs/ppo"


def test_two_processes_end_with_the_weights_of_one(folder: Path) -> None:
    for file in ("model.safetensors", "value_head.safetensors"):
        one, two = load_file(folder / "one" / file), load_file(folder / "two" / file)
        assert max(float((one[key] - two[key]).abs().max()) for key in one) < 2e-6


def test_two_processes_draw_and_measure_what_one_does(folder: Path) -> None:
    one, two = (
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two)
    for mine, other in zip(one, two, strict=True):
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            if not key.startswith(("seconds", "tokens_per_second")):
                assert other[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
    texts = [
        [json.loads(line)["completion"] for line in (folder / name / "rollouts.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert texts[0] == texts[1]
    assert {path.name for path in (folder / "one").iterdir()} == {path.name for path in (folder / "two").iterdir()}
