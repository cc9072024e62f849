"""`alignkit ppo` with each estimator of advantages: what is held, what is recorded, what does not change the result."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from alignkit.choices import Advantage
from alignkit.jobs import PpoJob
from alignkit.launch import compose_job, launch
from alignkit.ppo.learner import Learner
from alignkit.ppo.policy import Policy
from alignkit.stages.ppo import run as ppo

SMALL = ["model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32"]
REWARDS = """
def length(prompts, completions, **columns):
    return [len(completion) / 10 for completion in completions]

def easy(prompts, completions, **columns):
    return [1.0 if "even" in prompt else float(len(completion) % 5) for prompt, completion in zip(prompts, completions)]

def constant(prompts, completions, **columns):
    return [0.1] * len(completions)
"""
ESTIMATORS = [str(name) for name in Advantage]

Job = Callable[..., PpoJob]


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of two updates of two prompts and four completions each, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Say {'very ' * (n % 3)}{'even' if n % 2 == 0 else 'odd'} {n}."} for n in range(16)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("rewards.py").write_text(REWARDS)
    basis = [*SMALL, "template=instruction", "data.path=rows.jsonl", "train.report_to=none", "samples=0"]
    sizes = ["ppo.num_updates=2", "ppo.num_prompts=2", "ppo.num_generations=4", "ppo.num_mini_batches=1"]
    rest = ["sampling.max_new_tokens=8", "train.learning_rate=1e-3", "reward=[{function: 'rewards.py:length'}]"]
    return [*basis, *sizes, *rest, "train.per_device_train_batch_size=8", "model.dtype=float32"]


@pytest.fixture
def job(words: list[str]) -> Job:
    return lambda *more: compose_job("ppo", [*words, *more])


def run(job: PpoJob, run_dir: str = "out") -> None:
    ppo.run(job, Path(run_dir))


def metrics(run_dir: str, key: str) -> list[Any]:
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def largest_difference(one: str, two: str, file: str = "model.safetensors") -> float:
    a, b = load_file(Path(one) / file), load_file(Path(two) / file)
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


@pytest.mark.parametrize("advantage", ESTIMATORS)
def test_the_first_ratio_is_exactly_1_and_a_value_function_is_held_where_it_is_used_alone(
    job: Job, advantage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ppo.num_ppo_epochs=1", "train.per_device_train_batch_size=2", "train.save_steps=1"]
    ratio = "completion" if advantage == "grpo" else "token"
    run(job(f"ppo.advantage={advantage}", *words, f"ppo.ratio_over={ratio}"))
    assert metrics("out", "policy/ratio_max") == [1.0, 1.0]
    assert metrics("out", "policy/approx_kl") == metrics("out", "policy/clip_fraction") == [0.0, 0.0]
    assert metrics("out", "objective/kl")[0] == 0.0
    assert len(metrics("out", "group/std")) == 2
    has_critic = advantage == "gae"
    for folder in ("out", "out/checkpoints/checkpoint-1"):
        assert Path(folder, "value_head.safetensors").exists() is has_critic
    for name in ("loss/value", "value/clip_fraction", "value/explained_variance", "value/mean"):
        assert bool(metrics("out", name)) is has_critic
    said = capsys.readouterr().out
    assert ("; no value function; " in said) is not has_critic
    counted = re.search(r"^model +tiny_gpt2: ([0-9,]+) parameters, ([0-9,]+) of them", said, re.MULTILINE)
    assert counted
    weights = sum(weight.numel() for weight in load_file("out/model.safetensors").values())
    head = 33 if has_critic else 0  # 32 weights and a bias
    assert {int(number.replace(",", "")) for number in counted.groups()} == {weights + head}


@pytest.mark.parametrize("advantage", ESTIMATORS)
def test_accumulation_changes_nothing_but_rounding(job: Job, advantage: str) -> None:
    # plain gradient steps: Adam's first ones divide rounding by rounding where a gradient is nearly zero
    chosen = [f"ppo.advantage={advantage}", "train.optim=sgd", "train.learning_rate=0.05", "sampling.min_new_tokens=1"]
    for size in (8, 2):
        run(job(*chosen, f"train.per_device_train_batch_size={size}"), str(size))
    assert largest_difference("8", "2") < 2e-6
    assert metrics("8", "loss/total") == pytest.approx(metrics("2", "loss/total"), abs=1e-5)


def test_what_the_estimator_chose_is_shown_and_recorded(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    launch("ppo", [*words, "name=grpo", "ppo.advantage=grpo", "ppo.loss_over=tokens"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("advantage ")]
    assert line == (
        "advantage grpo: (R_i − mean R) / (std R + 1e-4) over the group (Shao et al. 2024, §4.1.2); no value function; "
        "the KL penalty is part of the loss, by k3; the loss is averaged over the tokens of a minibatch"
    )
    record = json.loads(Path("runs/ppo/grpo/run.json").read_text())
    chosen = record["job"]["ppo"]
    assert (chosen["kl_as"], chosen["loss_over"], chosen["max_kl"]) == ("loss", "tokens", 100.0)
    assert {chosen[name] for name in ("gamma", "lam", "vf_coef", "clip_range_value", "whiten_advantages")} == {None}
    assert record["origins"]["ppo.kl_as"] == "ppo.advantage=grpo"
    assert record["origins"]["ppo.loss_over"] == "command line"


@pytest.mark.parametrize("penalty", [["ppo.kl_coef=0"], ["ppo.kl_coef=0.1", "ppo.kl_as=loss_unbiased"]])
def test_the_only_pass_of_an_update_tells_what_the_policy_said(
    job: Job, monkeypatch: pytest.MonkeyPatch, penalty: list[str]
) -> None:
    passes: list[int] = []
    forward, begin = Policy.forward, Learner.__init__

    def counted(self: Policy, *args: Any) -> Any:
        passes[-1] += 1
        return forward(self, *args)

    def scored_before(self: Learner, **given: Any) -> None:
        begin(self, **given)
        self.learns_in_one_pass = False

    monkeypatch.setattr(Policy, "forward", counted)
    one = job("ppo.advantage=grpo", "ppo.num_ppo_epochs=1", "train.per_device_train_batch_size=4", *penalty)
    for run_dir in ("one", "two"):
        passes.append(0)
        run(one, run_dir)
        monkeypatch.setattr(Learner, "__init__", scored_before)
    assert passes == [2 * 2, 2 * 2 * 2]  # two updates of 8 completions, 4 in a pass
    assert largest_difference("one", "two") == 0
    logged = [json.loads(line) for line in Path("one/metrics.jsonl").read_text().splitlines()]
    for name in {name for line in logged for name in line if "second" not in name and name != "train_runtime"}:
        assert metrics("one", name) == metrics("two", name), name


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("advantage", ["gae", "grpo"])
def test_without_a_kl_penalty_no_reference_is_held(
    job: Job, advantage: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = ["lora=ppo", "lora.r=2"] if kind == "lora" else []
    run(job(f"ppo.advantage={advantage}", "ppo.kl_coef=0", "data.eval_fraction=0.25", "train.eval_steps=1", *lora))
    names = ("objective/kl", "objective/kl_k3", "eval_kl", "loss/kl")
    assert [metrics("out", name) for name in names] == [[], [], [], []]
    assert "memory    one copy of the model: the policy; without a KL penalty there is no reference\n" in (
        capsys.readouterr().out
    )
    lines = [json.loads(line) for line in Path("out/rollouts.jsonl").read_text().splitlines()]
    assert {line["kl"] for line in lines} == {None}


@pytest.mark.parametrize("kl_as", ["loss", "loss_unbiased"])
def test_a_kl_penalty_in_the_loss_keeps_the_policy_at_its_reference(job: Job, kl_as: str) -> None:
    chosen = ["ppo.advantage=grpo", f"ppo.kl_as={kl_as}", "ppo.num_updates=8", "train.learning_rate=3e-3"]
    run(job(*chosen, "ppo.kl_coef=1e-9"), "free")
    run(job(*chosen, "ppo.kl_coef=5"), "held")
    free, held = (sum(metrics(name, "objective/kl_k3")[-3:]) for name in ("free", "held"))
    assert held < free / 3
    assert metrics("held", "loss/kl")[0] >= 0


def test_the_two_kl_penalties_in_the_loss_have_one_value_and_two_gradients(job: Job) -> None:
    for kl_as in ("loss", "loss_unbiased"):
        run(job("ppo.advantage=grpo", "ppo.num_ppo_epochs=1", "ppo.kl_coef=5", f"ppo.kl_as={kl_as}"), kl_as)
    assert metrics("loss", "loss/kl")[0] == metrics("loss_unbiased", "loss/kl")[0] == 0  # at the reference itself
    assert metrics("loss", "loss/kl")[1] > 0
    assert largest_difference("loss", "loss_unbiased") > 0


def test_groups_without_a_difference_give_way_to_further_prompts(job: Job) -> None:
    chosen = ["ppo.advantage=grpo", "reward=[{function: 'rewards.py:easy'}]", "ppo.num_prompts=4", "data.shuffle=false"]
    chosen += ["train.per_device_train_batch_size=16", "ppo.keep_rollouts=4"]
    run(job(*chosen), "as asked")
    assert metrics("as asked", "group/flat_fraction") == [0.5, 0.5]
    assert metrics("as asked", "group/refilled") == []
    for name in ("refilled", "again"):
        run(job(*chosen, "ppo.refill_flat_groups=8"), name)
    assert metrics("refilled", "group/flat_fraction") == [0.0, 0.0]
    assert min(metrics("refilled", "group/refilled")) >= 2
    assert (Path("refilled") / "rollouts.jsonl").read_bytes() == (Path("again") / "rollouts.jsonl").read_bytes()
    assert largest_difference("refilled", "again") == 0
    lines = [json.loads(line) for line in Path("refilled/rollouts.jsonl").read_text().splitlines()]
    assert all("odd" in line["prompt"] for line in lines)
    # the mean of all that was asked in the first update is that of both kinds; the rollout's own is of the odd ones
    assert metrics("refilled", "group/score_asked")[0] != metrics("refilled", "objective/score")[0]


def test_refills_end_where_nothing_differs(job: Job) -> None:
    chosen = ["ppo.advantage=dr_grpo", "reward=[{function: 'rewards.py:constant'}]", "ppo.kl_coef=0"]
    run(job(*chosen, "ppo.refill_flat_groups=2", "ppo.num_updates=3"))
    assert metrics("out", "group/refilled") == [4.0] * 3  # two prompts, twice
    assert metrics("out", "group/flat_fraction") == [1.0] * 3
    assert metrics("out", "loss/policy") == [0.0] * 3
    (line,) = [line for line in Path("out/log.txt").read_text().splitlines() if "there is nothing to learn" in line]
    assert "update 3: in 3 updates in a row the completions of each prompt had one reward" in line


def test_what_is_cut_off_can_be_left_out_of_the_loss(job: Job) -> None:
    """A random model does not end within eight tokens: there is nothing to learn, and no weight moves."""
    chosen = ["ppo.advantage=grpo", "ppo.mask_truncated=true", "sampling.min_new_tokens=8", "ppo.num_updates=1"]
    run(job(*chosen, "train.optim=sgd", "train.save_steps=1"))
    assert metrics("out", "rollout/masked") == [8.0]
    assert metrics("out", "loss/total") == [0.0]
    run(job(*chosen[:1], *chosen[2:], "train.optim=sgd"), "with")
    assert metrics("with", "rollout/masked") == [0.0]
    assert largest_difference("out", "with") > 0


def test_the_penalty_on_length_is_part_of_the_scores(job: Job) -> None:
    run(job("sampling.min_new_tokens=8", "ppo.overlong={from: 4, to: 8, penalty: 3}", "ppo.num_updates=1"))
    assert metrics("out", "objective/score_shaped")[0] == pytest.approx(metrics("out", "objective/score")[0] - 3)
