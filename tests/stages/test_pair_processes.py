"""`alignkit` in two processes on pairs trains and measures what one process does, each pair once."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from alignkit.launch import launch
from alignkit.training.metrics import read_metrics

# 9 pairs in steps of 8: an epoch's last step has one pair, and a second process none. 5 are held out.
PAIRS = [{"prompt": f"Say {n}.", "chosen": f"{n}, " * (1 + n % 4), "rejected": f"{n}" * (1 + n % 3)} for n in range(14)]
WORDS = [
    *("model=tiny_gpt2", "data.path=pairs.jsonl", "data.eval_path=held.jsonl", "template=instruction"),
    *("train.num_train_epochs=1", "train.logging_steps=1", "train.report_to=none", "train.save_steps=3"),
    # plain gradient steps: Adam's first ones divide rounding by rounding where a gradient is nearly zero
    *("train.optim=sgd", "train.learning_rate=0.03", "train.max_grad_norm=1", "train.per_device_eval_batch_size=2"),
]
KINDS = {
    "reward": ["data.batching=grouped"],
    "dpo": ["data.batching=packed", "samples=0"],
    "dpo-kept": ["data.batching=grouped", "samples=0", "reference.keep=true"],
}
QUICK = ("dpo",)
NOT_THE_SAME = ("per_second", "runtime", "epoch")


@pytest.fixture(scope="module")
def folder(fork_server: Any) -> Path:
    folder: Path = fork_server.folder
    for name, rows in (("pairs", PAIRS[:9]), ("held", PAIRS[9:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def figures(run_dir: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if not name.endswith(NOT_THE_SAME)}
        for line in read_metrics(run_dir / "metrics.jsonl")
    ]


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_two_processes_train_and_measure_each_pair_once(
    fork_server: Any, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, *_ = kind.split("-")
    words = [*WORDS, *KINDS[kind]]
    one, two = folder / f"one-{kind}", folder / f"two-{kind}"
    spread = ["train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2"]
    done = fork_server.run_two("alignkit", stage, *words, *spread, f"hydra.run.dir={two.name}/run")
    assert done.status == 0, done.said
    monkeypatch.chdir(folder)
    launch(stage, [*words, "train.per_device_train_batch_size=8", f"hydra.run.dir={one.name}/run"])
    for first, second in zip(figures(one / "run"), figures(two / "run"), strict=True):
        assert second == pytest.approx(first, rel=1e-4, abs=1e-5)
    weights, others = (load_file(run / "run/model.safetensors") for run in (one, two))
    assert max(float((weights[key] - others[key]).abs().max()) for key in weights) < 2e-6
    if kind == "dpo-kept":  # one and the same file name: the kept ones do not depend on the batches
        names = [[path.name for path in (run / ".reference").iterdir()] for run in (one, two)]
        assert names[0] == names[1]
        assert len(names[0]) == 2
