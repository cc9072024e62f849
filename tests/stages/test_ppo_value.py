"""Three value functions: a head on the policy's states, on those of a further adapter, on those of its own backbone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from alignkit.choices import ValueModel
from alignkit.config import ModelConfig, ValueConfig
from alignkit.jobs import PpoJob
from alignkit.launch import compose_job
from alignkit.ppo.value_init import check_value_start
from alignkit.stages.ppo import run as ppo
from alignkit.stages.reward import run as reward
from alignkit.stages.sft import run as sft

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
ROWS = [
    {"instruction": f"Say {a} and {b}.", "output": f"{a}, {b}"[: 2 + i % 7]}
    for i, a in enumerate(WORDS)
    for b in WORDS[:4]
]
REWARDS = """
def length(prompts, completions, **columns):
    return [len(completion) / 10 for completion in completions]
"""
SMALL = ["model=tiny_gpt2", "model.config.n_layer=2", "model.config.n_embd=32", "model.config.n_inner=32"]
ADAPTER, HEAD, WEIGHTS = "adapter_model.safetensors", "value_head.safetensors", "model.safetensors"
_SHARED = "one copy of the backbone: with its adapter it is the policy, without it the reference"
_TWINS = "one copy of the backbone: policy and reference are two adapters on it"
_COPIES = "two copies of the model: the policy, and the reference it must stay near"
_ADAPTER, _OWN = (
    "; the value function is a further adapter on it",
    "; the value function is a backbone of its own that ",
)
_OWN += "trains with every weight"
# For each kind: words, what is held in memory, and the run that the policy starts as.
KINDS: dict[str, tuple[list[str], str, str | None]] = {
    "a further adapter": (["lora=ppo", "lora.r=4", "value.model=adapter"], _SHARED + _ADAPTER, None),
    "an adapter beside one that is trained further": (
        ["model.name=adapter", "value.model=adapter"],
        _TWINS + _ADAPTER,
        "adapter",
    ),
    "a backbone of its own": (["value.model=own"], _COPIES + _OWN, "sft"),
    "a backbone beside an adapter": (["model.name=adapter", "value.model=own"], _TWINS + _OWN, "adapter"),
}

LORA = {"r": 4, "lora_alpha": 32, "target_modules": "attention"}  # as the group `ppo` has it, but for r

Job = Callable[..., PpoJob]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, rewards, the run `sft`, and on it `adapter` and reward runs: `judge`, `wide` (LoRA), `whole-judge`."""
    folder = tmp_path_factory.mktemp("ppo-value")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pairs = [{"prompt": row["instruction"], "chosen": row["output"] + "!", "rejected": "no"} for row in ROWS]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (folder / "rewards.py").write_text(REWARDS)
    common = ["train.report_to=none", "train.save_strategy='no'", "train.max_steps=4", "train.learning_rate=1e-2"]
    on_sft = ["model.name=sft", "template=native", *common]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rows = ["data.path=rows.jsonl", "samples=0"]
        sft.run(compose_job("sft", [*SMALL, *common, *rows, "train.learning_rate=3e-3"]), Path("sft"))
        sft.run(compose_job("sft", [*on_sft, *rows, "lora=ppo", "lora.r=4"]), Path("adapter"))
        for name, lora in (
            ("judge", ["lora=ppo", "lora.r=4"]),
            ("wide", ["lora=ppo", "lora.r=8"]),
            ("whole-judge", []),
        ):
            reward.run(compose_job("reward", [*on_sft, "data.path=pairs.jsonl", *lora]), Path(name))
    return folder


@pytest.fixture
def job(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job of two updates of eight completions on `sft` in float32, in a folder of its own; words override."""
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)

    def make(*words: str) -> PpoJob:
        basis = ["model.name=sft", "model.dtype=float32", "data.path=rows.jsonl", "train.report_to=none", "samples=0"]
        sizes = ["ppo.num_updates=2", "ppo.num_prompts=8", "ppo.num_mini_batches=1", "sampling.max_new_tokens=8"]
        rest = ["train.per_device_train_batch_size=8", "reward=[{function: 'rewards.py:length'}]"]
        return compose_job("ppo", [*basis, *sizes, *rest, "train.learning_rate=1e-3", *words])

    return make


def run(job: PpoJob, run_dir: str = "out") -> None:
    ppo.run(job, Path(run_dir))


def metrics(run_dir: str, key: str) -> list[Any]:
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def largest_difference(one: str, two: str) -> float:
    a, b = load_file(one), load_file(two)
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


@pytest.mark.parametrize("kind", KINDS)
def test_values_start_at_0_and_warm_up_alone(job: Job, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, held, start = KINDS[kind]
    alone = ["value.warmup_updates=1", "value.learning_rate=0.01", "ppo.num_ppo_epochs=1", "train.save_steps=1"]
    run(job(*words, *alone, "train.per_device_train_batch_size=4"))
    assert metrics("out", "policy/ratio_max") == [1.0, 1.0]
    assert metrics("out", "objective/kl") == [0.0, 0.0]
    first, second = metrics("out", "value/mean")
    assert first == 0.0 != second
    policy = ADAPTER if held.startswith("one") else WEIGHTS
    values = f"value/{ADAPTER if held.endswith('it') else WEIGHTS}"
    weights = [load_file(f"out{place}/{policy}") for place in ("/checkpoints/checkpoint-1", "")]
    if start is None:
        assert not any(bool(weight.any()) for key, weight in weights[0].items() if ".lora_B." in key)
    else:
        assert all(torch.equal(weight, weights[0][key]) for key, weight in load_file(f"{start}/{policy}").items())
    assert any(bool((weights[0][key] != weights[1][key]).any()) for key in weights[0])
    assert largest_difference(f"out/checkpoints/checkpoint-1/{values}", f"out/{values}") > 1e-4
    assert f"memory    {held}\n" in capsys.readouterr().out


def test_a_backbone_of_its_own_starts_as_the_policy_its_adapter_included(job: Job) -> None:
    run(job("model.name=adapter", "value.model=own", "ppo.num_updates=1", "train.learning_rate=1e-12"))
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("sft"), "adapter").merge_and_unload()
    values, ids = AutoModel.from_pretrained("out/value"), torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        states = policy(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(values(input_ids=ids).last_hidden_state, states, atol=1e-5)


def test_the_run_directory_holds_the_policy_and_beside_it_the_value_function(job: Job) -> None:
    run(job("model.name=adapter", "value.model=adapter", "train.learning_rate=1e-2", "train.save_steps=2"))
    plain = AutoModelForCausalLM.from_pretrained("sft")
    loaded = PeftModel.from_pretrained(plain, "out")
    assert list(loaded.peft_config) == ["default"]
    for place in ("out", "out/checkpoints/checkpoint-2"):
        weights = load_file(f"{place}/{ADAPTER}")
        assert all(".lora_" in key and "value" not in key for key in weights)
        assert sorted(path.name for path in Path(f"{place}/value").iterdir()) == ["adapter_config.json", ADAPTER]
        assert Path(f"{place}/value/{ADAPTER}").stat().st_mode & 0o777 == 0o644
    assert largest_difference(f"out/{ADAPTER}", f"out/value/{ADAPTER}") > 1e-3
    assert not Path("out/README.md").exists()


@pytest.mark.parametrize("kind", ["a further adapter", "a backbone of its own"])
def test_smaller_batches_and_recomputed_activations_change_nothing_but_rounding(job: Job, kind: str) -> None:
    # plain gradient steps: Adam's first ones divide rounding by rounding where a gradient is nearly zero
    words = [*KINDS[kind][0], "train.optim=sgd", "train.learning_rate=0.05", "train.save_steps=1"]
    run(job(*words), "whole")
    run(job(*words, "train.per_device_train_batch_size=2", "train.gradient_checkpointing=true"), "parts")
    policy, values = (ADAPTER, f"value/{ADAPTER}") if "lora=ppo" in words else (WEIGHTS, f"value/{WEIGHTS}")
    for file in (policy, values, HEAD):
        assert largest_difference(f"whole/{file}", f"whole/checkpoints/checkpoint-1/{file}") > 1e-5
        assert largest_difference(f"whole/{file}", f"parts/{file}") < 2e-6


@pytest.mark.parametrize("kind", ["an adapter beside one that is trained further", "a backbone beside an adapter"])
def test_interrupted_and_resumed_is_never_interrupted(job: Job, kind: str) -> None:
    words = [*KINDS[kind][0], "train.save_steps=1", "value.learning_rate=0.01"]
    run(job(*words), "whole")
    shutil.copytree("whole", "stopped")
    shutil.rmtree("stopped/checkpoints/checkpoint-2")
    record = json.loads(Path("stopped/run.json").read_text())
    Path("stopped/run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    for path in [*Path("stopped").glob("*.safetensors"), *Path("stopped/value").iterdir()]:
        path.unlink()
    run(job(*words, "resume=true"), "stopped")
    assert metrics("stopped", "objective/score") == metrics("whole", "objective/score")
    for place in ("", "checkpoints/checkpoint-2"):
        whole, stopped = Path("whole") / place, Path("stopped") / place
        files = [path.relative_to(whole) for path in whole.glob("**/*.safetensors")]
        files += [Path("optimizer.pt"), Path("ppo_state.json")] if place else []
        assert len(files) >= 3
        assert all((stopped / file).read_bytes() == (whole / file).read_bytes() for file in files)


def test_another_run_goes_on_from_the_values_of_one(job: Job) -> None:
    words = [*KINDS["a further adapter"][0], "value.learning_rate=0.01"]
    run(job(*words), "first")
    run(job(*words, "value.start=first", "ppo.num_updates=1", "value.learning_rate=1e-12"), "second")
    for file in (f"value/{ADAPTER}", HEAD):
        assert largest_difference(f"first/{file}", f"second/{file}") < 1e-9
    assert metrics("second", "value/mean")[0] != 0.0
    parents = json.loads(Path("second/run.json").read_text())["parents"]
    assert [Path(parent["path"]).name for parent in parents] == ["sft", "first"]


def test_values_start_at_the_scores_of_a_reward_run(job: Job) -> None:
    still = ["ppo.num_updates=1", "train.learning_rate=1e-12"]
    run(job("lora=ppo", "lora.r=4", "value.model=adapter", "value.start=judge", *still), "adapter-start")
    run(job("value.model=own", "value.start=whole-judge", *still), "own-start")
    judge = load_file(f"judge/{ADAPTER}")
    head = judge.pop("base_model.model.score.weight")[0]
    found = load_file(f"adapter-start/value/{ADAPTER}")
    assert found.keys() == judge.keys()
    assert max(float((found[key] - judge[key]).abs().max()) for key in judge) < 1e-9
    assert torch.allclose(load_file(f"adapter-start/{HEAD}")["weight_H"], head, atol=1e-9)
    whole = load_file(f"whole-judge/{WEIGHTS}")
    found = load_file(f"own-start/value/{WEIGHTS}")
    assert {f"transformer.{key}" for key in found} == whole.keys() - {"score.weight"}
    assert max(float((found[key] - whole[f"transformer.{key}"]).abs().max()) for key in found) < 1e-9
    assert torch.allclose(load_file(f"own-start/{HEAD}")["weight_H"], whole["score.weight"][0], atol=1e-9)
    for name in ("adapter-start", "own-start"):
        assert metrics(name, "value/mean")[0] != 0.0
    # a run that began at a reward run can itself be gone on from
    run(job("value.model=own", "value.start=own-start", *still), "again")
    assert largest_difference(f"again/value/{WEIGHTS}", f"own-start/value/{WEIGHTS}") < 1e-9


@pytest.mark.parametrize(
    ("start", "kind", "model", "lora", "line"),
    [
        ("gone", "shared", "sft", {}, "there is no run directory gone"),
        ("sft", "own", "sft", {}, "sft has no value head, no value_head.safetensors: a run of alignkit ppo has one"),
        (
            "judge",
            "shared",
            "sft",
            {},
            "judge is a reward run, an adapter, whose head reads states of its own and not the policy's: it goes on "
            "with value.model=adapter",
        ),
        ("judge", "own", "sft", {}, "judge is a reward run, an adapter: it goes on with value.model=adapter"),
        (
            "whole-judge",
            "adapter",
            "sft",
            LORA,
            "whole-judge is a reward run, a full model: it goes on with value.model=own",
        ),
        (
            "of-adapter",
            "shared",
            "sft",
            LORA,
            "the value function of of-adapter is of the kind adapter: it goes on with value.model=adapter",
        ),
        (
            "shared",
            "own",
            "sft",
            {},
            "the value function of shared is of the kind shared: it goes on with value.model=shared",
        ),
        (
            "wide",
            "adapter",
            "sft",
            LORA,
            "wide has lora.r=8, and this run 4: the value function's LoRA is the policy's, give both the same",
        ),
        (
            "wide",
            "adapter",
            "adapter",
            {},
            "wide has lora.r=8, and this run 4: the value function's LoRA is the policy's, give both the same",
        ),
        (
            "judge",
            "adapter",
            "sft",
            {**LORA, "target_modules": ["attn.c_attn"]},
            "judge has LoRA on other layers than this run: give both the same lora.*",
        ),
        ("judge", "adapter", "moved", LORA, "the adapter judge was trained on another base than moved"),
        ("whole-judge", "own", "wider", {}, "whole-judge has another architecture than wider"),
        (
            "shared",
            "shared",
            "wider",
            {},
            "the value head of shared reads states of 64 numbers, this model's have 128",
        ),
    ],
)
def test_a_start_that_does_not_fit_is_refused_with_the_way_out(
    job: Job, start: str, kind: str, model: str, lora: dict[str, Any], line: str
) -> None:
    for name in ("shared", "of-adapter"):  # runs of PPO, as far as values go
        Path(name).mkdir()
        save_file({"weight_H": torch.zeros(64), "bias": torch.zeros(())}, f"{name}/{HEAD}")
    shutil.copytree("adapter", "of-adapter/value")
    for name, more in (("moved", {}), ("wider", {"n_embd": 128})):  # models, as far as one can tell without weights
        shutil.copytree("sft", name)
        config = json.loads(Path("sft/config.json").read_text())
        Path(f"{name}/config.json").write_text(json.dumps({**config, **more, "attn_pdrop": 0.0, "n_ctx": 1}))
    section = ValueConfig(model=ValueModel(kind), start=start)
    assert check_value_start(section, ModelConfig(model), lora) == [f"value.start: {line}"]


@pytest.mark.parametrize(
    ("start", "kind", "model", "lora"),
    [("judge", "adapter", "sft", LORA), ("judge", "adapter", "adapter", {}), ("whole-judge", "own", "sft", LORA)],
)
def test_a_start_that_fits_has_no_problems(job: Job, start: str, kind: str, model: str, lora: dict[str, Any]) -> None:
    assert check_value_start(ValueConfig(model=ValueModel(kind), start=start), ModelConfig(model), lora) == []
