"""`alignkit ppo` from a job to its run directory, on tiny models and Python rewards."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from alignkit.errors import AlignkitError, ConfigError, RewardError, TrainingError
from alignkit.jobs import PpoJob
from alignkit.launch import compose_job
from alignkit.models.tiny import byte_tokenizer
from alignkit.stages.ppo import run as ppo
from alignkit.stages.sft import run as sft

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
ROWS = [
    {"instruction": f"Say {a} and {b}.", "output": f"{a}, {b}"[: 2 + i % 7], "tag": a}
    for i, a in enumerate(WORDS)
    for b in WORDS[:4]
]
REWARDS = """
def length(prompts, completions, **columns):
    return [len(completion) / 10 for completion in completions]

def tagged(prompts, completions, tag):
    assert all(word in prompt for prompt, word in zip(prompts, tag))
    return [float(word[0] in completion) for completion, word in zip(completions, tag)]
"""
SMALL = ["model=tiny_gpt2", "model.config.n_layer=2", "model.config.n_embd=64", "model.config.n_inner=64"]

Job = Callable[..., PpoJob]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, rewards and two trained runs, `sft` (full) and `adapter` (LoRA), whose answers end at different lengths."""
    folder = tmp_path_factory.mktemp("ppo")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "rewards.py").write_text(REWARDS)
    words = [*SMALL, "data.path=rows.jsonl", "samples=0", "train.report_to=none", "train.max_steps=40"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sft.run(compose_job("sft", [*words, "train.learning_rate=3e-3"]), Path("sft"))
        lora = ["lora=ppo", "lora.r=4", "train.learning_rate=1e-2", "train.max_steps=5"]
        base = ["model.name=sft", "data.path=rows.jsonl", "samples=0", "train.report_to=none", "template=native"]
        sft.run(compose_job("sft", [*base, *lora]), Path("adapter"))
    return folder


@pytest.fixture
def job(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job of three updates of eight completions on `sft`, in a folder of its own; words override."""
    for name in ("rows.jsonl", "rewards.py", "sft", "adapter"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)

    def make(*words: str) -> PpoJob:
        basis = ["model.name=sft", "data.path=rows.jsonl", "train.report_to=none", "samples=2", "ppo.num_updates=3"]
        sizes = ["ppo.num_prompts=8", "ppo.num_mini_batches=1", "train.per_device_train_batch_size=8"]
        rest = ["sampling.max_new_tokens=8", "train.learning_rate=1e-3", "reward=[{function: 'rewards.py:length'}]"]
        return compose_job("ppo", [*basis, *sizes, *rest, *words])

    return make


def metrics(run_dir: str, key: str) -> list[Any]:
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def largest_difference(one: str, two: str, file: str = "model.safetensors") -> float:
    a, b = load_file(Path(one) / file), load_file(Path(two) / file)
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


KINDS = {"full": [], "lora": ["lora=ppo"], "adapter": ["model.name=adapter"]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [8, 2])
def test_before_the_first_step_the_ratio_is_exactly_1_and_the_kl_exactly_0(job, kind, size):
    """Prompts of different lengths and completions that end at different lengths: padding on both sides."""
    run(job(*KINDS[kind], "ppo.num_ppo_epochs=1", "ppo.num_updates=2", f"train.per_device_train_batch_size={size}"))
    assert metrics("out", "policy/ratio_max") == [1.0, 1.0]
    assert metrics("out", "policy/approx_kl") == [0.0, 0.0]
    assert metrics("out", "policy/clip_fraction") == [0.0, 0.0]
    first, second = metrics("out", "objective/kl")
    assert first == metrics("out", "objective/kl_k3")[0] == 0.0
    assert second != 0.0
    assert metrics("out", "rollout/eos_fraction")[0] > 0
    lengths = [json.loads(line)["length"] for line in Path("out/rollouts.jsonl").read_text().splitlines()]
    assert len(set(lengths)) > 1


def run(job: PpoJob, run_dir: str = "out") -> None:
    ppo.run(job, Path(run_dir))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_accumulation_changes_nothing_but_rounding(job, kind):
    # plain gradient steps: Adam's first ones divide rounding by rounding where a gradient is nearly zero
    words = ["ppo.num_updates=2", "train.optim=sgd", "train.learning_rate=0.01", "model.dtype=float32", *KINDS[kind]]
    for size in (8, 4, 2):
        run(job(*words, f"train.per_device_train_batch_size={size}"), str(size))
    assert largest_difference("sft", "8") > 1e-3 if kind == "full" else True
    file = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    for other in ("4", "2"):
        assert largest_difference("8", other, file) < 2e-6
        assert largest_difference("8", other, "value_head.safetensors") < 2e-6
    assert metrics("8", "loss/total") == pytest.approx(metrics("4", "loss/total"), abs=1e-5)
    assert metrics("8", "objective/score") == metrics("4", "objective/score")


def test_the_same_seed_gives_the_same_bits(job):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(job(f"seed={seed}", "ppo.num_updates=2"), name)
    bits = [(Path(name) / "model.safetensors").read_bytes() for name in "abc"]
    assert bits[0] == bits[1] != bits[2]


@pytest.mark.usefixtures("drawn")
def test_the_run_directory_is_a_model_and_has_what_was_measured(job):
    run(job("data.eval_fraction=0.25", "train.eval_steps=1"))
    model = AutoModelForCausalLM.from_pretrained("out")
    assert model.num_parameters() > 0
    assert (torch.tensor(0.0) != load_file("out/value_head.safetensors")["weight_H"]).any()
    record = json.loads(Path("out/run.json").read_text())
    assert record["status"] == "finished"
    assert record["stage"] == "ppo"
    assert (Path("out") / record["parents"][0]["path"]).resolve() == Path("sft").resolve()
    assert len(metrics("out", "eval_score")) == 4
    assert metrics("out", "eval_kl")[0] == 0.0
    assert record["result"]["eval_score"]["first"] == metrics("out", "eval_score")[0]
    best = max(metrics("out", "eval_score")[1:])
    assert record["result"]["kept_step"] == metrics("out", "eval_score").index(best)
    assert Path("out/curves.png").stat().st_size > 10_000
    (sample, _) = [json.loads(line) for line in Path("out/samples.jsonl").read_text().splitlines()]
    assert sample.keys() == {"source", "prompt", "before", "after", "score_before", "score_after"}
    (line, *_) = [json.loads(line) for line in Path("out/rollouts.jsonl").read_text().splitlines()]
    assert line["score"] == pytest.approx(len(line["completion"]) / 10)
    names = "objective/score objective/kl objective/reward objective/entropy loss/policy loss/value loss/total "
    names += "policy/approx_kl policy/clip_fraction policy/ratio_max value/clip_fraction value/explained_variance "
    names += "rollout/length rollout/eos_fraction rollout/unique_fraction kl_coef temperature seconds/rollout "
    names += "seconds/scoring seconds/update tokens_per_second/rollout tokens_per_second"
    for name in names.split():
        assert len(metrics("out", name)) == 3, name


def test_an_adapter_run_trains_further_against_a_frozen_twin(job):
    run(job("model.name=adapter"))
    assert metrics("out", "objective/kl")[0] == 0.0
    assert largest_difference("adapter", "out", "adapter_model.safetensors") > 1e-4
    assert not list(Path("out").glob("ref"))
    assert json.loads(Path("out/adapter_config.json").read_text())["r"] == 4


def test_lora_saves_the_adapter_alone_and_its_backbone_is_untouched(job):
    run(job("lora=ppo"))
    assert not Path("out/model.safetensors").exists()
    assert all("lora_" in key for key in load_file("out/adapter_model.safetensors"))


def test_a_large_kl_price_keeps_the_policy_at_its_reference(job):
    words = ["ppo.num_updates=10", "train.learning_rate=3e-4", "samples=0"]
    run(job(*words, "ppo.kl_coef=1e-9"), "free")
    run(job(*words, "ppo.kl_coef=10"), "held")
    # k3 of the last three updates: eight completions are few, and k1 of them may even be negative
    free, held = (sum(metrics(name, "objective/kl_k3")[-3:]) / 3 for name in ("free", "held"))
    assert free > 1.0
    assert held < free / 4


def test_temperature_and_price_move_in_a_line(job):
    run(job("sampling.temperature={start: 1, end: 2}", "ppo.kl_coef=0.4", "ppo.kl_coef_end=0"))
    assert metrics("out", "temperature") == [1.0, 1.5, 2.0]
    assert metrics("out", "kl_coef") == pytest.approx([0.4, 0.2, 0.0])


def test_the_price_is_steered_towards_a_target(job):
    run(job("ppo.kl_target=6", "ppo.kl_horizon=8"))
    first, second, third = metrics("out", "kl_coef")
    assert second == pytest.approx(first * 0.8)  # a KL of 0 is as far below the target as counts
    assert third < second


def test_a_target_of_movement_skips_the_other_passes(job):
    run(job("ppo.target_kl=1e-9", "train.learning_rate=1e-2"))
    assert metrics("out", "optimizer_steps") == [2.0, 2.0, 2.0]  # the first pass has not moved yet
    run(job(), "all")
    assert metrics("all", "optimizer_steps") == [4.0, 4.0, 4.0]


def test_the_value_head_warms_up_alone(job):
    run(job("value.warmup_updates=2", "value.learning_rate=0.1", "ppo.num_updates=3", "train.save_steps=2"))
    warmed = load_file("out/checkpoints/checkpoint-2/model.safetensors")
    before = load_file("sft/model.safetensors")
    assert all(torch.equal(warmed[key], before[key]) for key in warmed)
    assert metrics("out", "objective/kl")[:2] == [0.0, 0.0]
    assert metrics("out", "value/mean")[1] != 0.0
    assert largest_difference("sft", "out") > 0


def test_a_value_head_goes_on_from_another_run(job):
    run(job("ppo.num_updates=2", "value.learning_rate=0.1"), "first")
    run(job("model.name=first", "value.start=first", "ppo.num_updates=1"), "second")
    assert metrics("second", "value/mean")[0] != 0.0
    with pytest.raises(ConfigError, match=r"^value\.start: sft has no value head, no value_head\.safetensors"):
        run(job("value.start=sft"))
    words = ["model=tiny_gpt2", "model.name=tiny_gpt2", "template=instruction", "value.start=first"]
    with pytest.raises(ConfigError, match="reads states of 64 numbers, this model's have 128"):
        run(job(*words))


def test_values_can_move_without_bound(job):
    run(job("ppo.clip_range_value=inf", "value.learning_rate=0.1", "ppo.num_updates=2"))
    assert metrics("out", "value/clip_fraction") == [0.0, 0.0]
    assert abs(metrics("out", "value/mean")[1]) > 0.2


def test_samples_are_spread_over_prompts(job):
    run(job("ppo.num_prompts=4", "ppo.num_generations=2", "ppo.num_updates=1", "ppo.keep_rollouts=6"))
    lines = [json.loads(line) for line in Path("out/rollouts.jsonl").read_text().splitlines()]
    sources = [line["source"] for line in lines]
    assert len(lines) == 6
    assert len(set(sources[:4])) == 4
    assert sources[4:] == sources[:2]


def test_columns_of_the_rows_reach_the_reward(job):
    run(
        job(
            "reward=[{function: 'rewards.py:tagged'}, {function: 'rewards.py:length', weight: -1}]", "ppo.num_updates=1"
        )
    )
    (line, *_) = [json.loads(line) for line in Path("out/rollouts.jsonl").read_text().splitlines()]
    first, second = line["scores"].values()
    assert line["score"] == pytest.approx(first - second)
    assert "score/rewards.py:tagged" in Path("out/metrics.jsonl").read_text()


def test_a_reward_that_fails_names_the_function_and_the_sample(job):
    Path("bad.py").write_text(
        "def bad(prompts, completions, **_):\n    return [1 / ('two' not in p) for p in prompts]\n"
    )
    with pytest.raises(RewardError, match=r"reward\[0\]: bad.py:bad raised ZeroDivisionError: .*; the sample is rows"):
        run(job("reward=[{function: 'bad.py:bad'}]", "ppo.num_prompts=32"))


def test_an_update_without_any_score_is_an_error_that_shows_the_first_failure(job, capsys):
    Path("broken.py").write_text("def broken(prompts, completions):\n    raise OSError('no judge')\n")
    with pytest.raises(RewardError, match="update 1: the reward failed on all 8 completions; the first failure is abo"):
        run(job("reward=[{function: 'broken.py:broken', on_error: skip}]"))
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "no judge" in line]
    assert "raised OSError: no judge; the sample is rows.jsonl:1, prompt" in told


def test_held_out_prompts_without_any_score_are_an_error(job):
    Path("broken.py").write_text("def broken(prompts, completions):\n    raise OSError('no judge')\n")
    words = ["data.eval_fraction=0.25", "samples=0", "reward=[{function: 'broken.py:broken', on_error: skip}]"]
    with pytest.raises(RewardError, match="the held-out prompts: the reward failed on all 8 completions; the first"):
        run(job(*words))


def test_a_reward_that_fails_can_be_skipped_and_is_counted(job):
    Path("bad.py").write_text(
        "def bad(prompts, completions, **_):\n    return [1 / ('two' not in p) for p in prompts]\n"
    )
    words = ["reward=[{function: 'bad.py:bad', on_error: skip}]", "ppo.num_prompts=32", "samples=0"]
    run(job(*words, "ppo.keep_rollouts=32"))
    assert metrics("out", "rollout/skipped")[0] > 0
    assert metrics("out", "objective/score") == [1.0] * 3
    for line in map(json.loads, Path("out/rollouts.jsonl").read_text().splitlines()):
        reason = "bad.py:bad raised ZeroDivisionError: division by zero" if "two" in line["prompt"] else None
        assert (line["score"] is None, line.get("unscored")) == (reason is not None, reason)


def test_rows_that_leave_no_room_are_refused_before_loading(job):
    with pytest.raises(AlignkitError, match=r"sampling\.max_new_tokens=600 leaves no room for a prompt"):
        run(job("sampling.max_new_tokens=600"))


def test_gradient_checkpointing_changes_nothing_but_rounding(job):
    words = ["ppo.num_updates=2", "train.optim=sgd", "train.learning_rate=0.01", "model.dtype=float32"]
    run(job(*words, "train.gradient_checkpointing=true"), "on")
    run(job(*words), "off")
    assert largest_difference("on", "off") < 2e-6


def test_a_prompt_that_is_asked_again_in_an_update_draws_anew(job):
    run(job("data.limit=2", "ppo.num_prompts=8", "ppo.num_generations=2", "sampling.max_new_tokens=16"))
    assert min(metrics("out", "rollout/unique_fraction")) > 0.5


def test_other_architectures_adapters_and_truncated_sampling_go_together(job):
    llama = [
        "model=tiny_llama",
        "model.name=tiny_llama",
        "template=instruction",
        "lora=ppo",
        "train.gradient_checkpointing=true",
    ]
    truncated = ["sampling.top_k=20", "ppo.allow_truncated_sampling=true", "sampling.min_new_tokens=3"]
    run(job(*llama, *truncated, "ppo.num_generations=2", "ppo.num_prompts=4", "ppo.entropy_coef=0.01"))
    assert metrics("out", "objective/kl")[0] == 0.0
    assert len(metrics("out", "loss/total")) == 3
    assert min(json.loads(line)["length"] for line in Path("out/rollouts.jsonl").read_text().splitlines()) >= 3


@pytest.mark.parametrize("value", ["shared", "own"])
def test_a_mixture_of_experts_is_resumed_with_its_experts(job, value):
    """Their weights have other names in a published folder than in memory."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {"num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    tokenizer = byte_tokenizer()
    MixtralForCausalLM(MixtralConfig(vocab_size=len(tokenizer), **sizes, **experts)).save_pretrained("moe")
    tokenizer.save_pretrained("moe")
    words = ["model.name=moe", "template=instruction", "model.dtype=float32", f"value.model={value}"]
    words += ["ppo.num_updates=4", "train.save_steps=2", "train.learning_rate=1e-2"]
    run(job(*words), "whole")
    shutil.copytree("whole", "parts")
    shutil.rmtree("parts/checkpoints/checkpoint-4")
    record = json.loads(Path("parts/run.json").read_text())
    Path("parts/run.json").write_text(json.dumps(record | {"status": "failed"}))  # after update 2
    run(job(*words, "resume=true"), "parts")
    assert largest_difference("whole", "parts") == 0
    assert largest_difference("moe", "parts") > 1e-3
    assert metrics("parts", "objective/entropy") == metrics("whole", "objective/entropy")


def test_early_stopping_keeps_the_best(job):
    words = ["data.eval_fraction=0.25", "early_stopping=1", "train.eval_steps=1", "ppo.num_updates=8"]
    Path("worse.py").write_text("n = [0]\ndef worse(p, c):\n    n[0] -= 1\n    return [n[0]] * len(c)\n")
    run(job(*words, "reward=[{function: 'worse.py:worse'}]"))
    assert len(metrics("out", "objective/score")) == 2
    assert json.loads(Path("out/run.json").read_text())["result"]["kept_step"] == 1


def test_a_sign_of_trouble_can_stop_the_run(job):
    with pytest.raises(TrainingError, match=r"update 2: the KL is .* above ppo\.max_kl=0\.0001.*\(ppo\.health=stop\)"):
        run(job("ppo.health=stop", "ppo.max_kl=0.0001", "train.learning_rate=1e-2"))
