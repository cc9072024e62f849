"""A plan beside what training really takes, by torch's own profiler."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import api
from alignkit.errors import ConfigError, ModelError
from alignkit.planning.measured import watched_peak
from alignkit.planning.plan import Plan, make_plan
from alignkit.planning.rehearsal import Rehearsed
from alignkit.planning.sizes import parse_size

ROWS = [{"prompt": f"Say {i}.", "completion": "word " * (20 + i), "chosen": "yes " * (20 + i), "rejected": "no " * 20}
        for i in range(8)]  # fmt: skip
COMMON = ["data.path=rows.jsonl", "data.eval_path=null", "data.eval_fraction=0", "template=instruction"]
COMMON += ["train.per_device_train_batch_size=8", "train.bf16=false"]
PPO = ["ppo.num_prompts=8", "ppo.num_mini_batches=1", "ppo.num_ppo_epochs=1", "sampling.min_new_tokens=32"]
PPO += ["sampling.max_new_tokens=32", "ppo.num_updates=2", "reward=[{function: 'alignkit.demo.rewards:count_a'}]"]
POINTS = {
    "sft gpt2 full": ("sft", "model=tiny_gpt2"),
    "sft llama lora recomputed": ("sft", "model=tiny_llama", "lora=default", "train.gradient_checkpointing=true"),
    "reward llama full": ("reward", "model=tiny_llama"),
    "dpo gpt2 lora": ("dpo", "model=tiny_gpt2", "lora=default"),
    "dpo llama full": ("dpo", "model=tiny_llama"),
    "ppo llama full": ("ppo", "model=tiny_llama", *PPO),
    "ppo gpt2 lora": ("ppo", "model=tiny_gpt2", "lora=ppo", "value.model=adapter", *PPO),
}
SLOW = ("sft llama lora recomputed", "dpo llama full", "ppo llama full")


def words_of(stage: str, *words: str) -> list[str]:
    rows = [{k: v for k, v in row.items() if k in _COLUMNS[stage]} for row in ROWS]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    steps = [] if stage == "ppo" else ["train.max_steps=2"]
    return [*COMMON, *steps, *([] if stage == "reward" else ["samples=0"]), *words]


_COLUMNS = {"sft": ("prompt", "completion"), "ppo": ("prompt",)} | dict.fromkeys(
    ("reward", "dpo"), ("prompt", "chosen", "rejected")
)


def planned(stage: str, *words: str, memory: int | None = None, processes: int = 1) -> Plan:
    rehearsal = import_module(f"alignkit.stages.{stage}.plan").rehearsal(api.job(stage, *words), processes=processes)  # type: ignore[call-overload]
    return make_plan(Rehearsed(rehearsal), processes=processes, memory=memory)


def trained(stage: str, *words: str) -> dict[str, int]:
    """What is in memory in the second step of a run, in bytes, and the peak on top of it by torch's profiler."""
    found: dict[str, int] = {}
    run = import_module(f"alignkit.stages.{stage}.run")
    name = {"sft": "SftTrainer", "reward": "RewardTrainer", "dpo": "DpoTrainer", "ppo": "PpoTrainer"}[stage]
    timed = "learn" if stage == "ppo" else "training_step"

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        with watched_peak(torch.device("cpu")) as peak:
            result = getattr(super(watched, self), timed)(*args, **kwargs)
        modules = [self.policy] if stage == "ppo" else [self.model, getattr(self, "ref_model", None)]
        kept = {id(t): t for module in modules if module for t in (*module.parameters(), *module.buffers())}.values()
        trains = [weight for weight in kept if weight.requires_grad]
        state = [t for own in self.optimizer.state.values() for t in own.values() if torch.is_tensor(t)]
        found.update(
            parameters=sum(t.numel() for t in kept if isinstance(t, torch.nn.Parameter)),
            trained=sum(weight.numel() for weight in trains),
            gradients=sum(weight.grad.nbytes for weight in trains),
            optimizer=sum(tensor.nbytes for tensor in state),
            weights=sum(tensor.nbytes for tensor in kept),
            peak=peak.bytes,
        )
        return result

    watched: Any = type(name, (getattr(run, name),), {timed: step})
    api.run(api.job(stage, *words), "run", trainer_class=watched)  # type: ignore[call-overload]
    return found


@pytest.mark.parametrize("point", [pytest.param(point, marks=[pytest.mark.slow] * (point in SLOW)) for point in POINTS])
def test_a_plan_is_what_training_takes(point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stage, *words = POINTS[point]
    words = words_of(stage, *words)
    plan = planned(stage, *words)
    found = trained(stage, *words)
    assert plan.parameters == found["parameters"]
    assert plan.trained == found["trained"]
    assert plan.gradients == found["gradients"]
    assert plan.held["optimizer"] == found["optimizer"]
    assert plan.total_held - plan.held["optimizer"] == found["weights"]
    assert plan.step.peak == pytest.approx(found["peak"], rel=0.15)


def test_the_largest_micro_batch_fits_and_one_more_row_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = words_of("sft", "model=tiny_gpt2")
    largest = planned("sft", *words, memory=100_000_000).largest
    assert largest is not None
    peaks = [
        planned("sft", *words, f"train.per_device_train_batch_size={rows}").peak for rows in (largest, largest + 1)
    ]
    assert peaks[0] <= 100_000_000 < peaks[1]
    assert planned("sft", *words, memory=1_000_000).largest == 0


def test_processes_gather_gradients_in_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = planned("sft", *words_of("sft", "model=tiny_gpt2"), processes=2)
    assert plan.held["gradient buckets"] == plan.gradients


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 10**9), ("80 GiB", 80 * 2**30), ("512mb", 512 * 10**6), ("1.5T", 15 * 10**11)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["big", "24 gigs", "", "0GB", "-1GB", "nan"])
def test_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size of memory: write it as 24GB"):
        parse_size(text)


def test_an_architecture_that_cannot_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = words_of("sft", "model.init=random", "model.name=x")
    with pytest.raises((ConfigError, ModelError), match="has no causal language model"):
        planned("sft", *words, "model.config={model_type: vit}")
