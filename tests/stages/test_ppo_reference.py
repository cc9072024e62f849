"""A reference model that is named: on the policy's backbone where it sits on the same, else with its own weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit.commands.merge import run as merge
from alignkit.errors import ConfigError, TrainingError
from alignkit.jobs import PpoJob
from alignkit.launch import command_job, compose_job
from alignkit.stages.ppo import run as ppo
from alignkit.stages.sft import run as sft

ROWS = [{"instruction": f"Say {'very ' * (n % 3)}{n}.", "output": f"{n} {'!' * (n % 4)}"} for n in range(16)]
REWARDS = """
def length(prompts, completions):
    return [len(c) / 10 for c in completions]
def marks(prompts, completions):
    return [float(c.count("!")) for c in completions]
"""
SMALL = ["model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32"]
QUIET = ["data.path=rows.jsonl", "train.report_to=none", "samples=0", "model.dtype=float32"]
Job = Callable[..., PpoJob]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, rewards, and the runs `sft` and `other` (full), `adapter` and `far` (LoRA on `sft`), `merged` (`far`)."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "rewards.py").write_text(REWARDS)
    lora = [*QUIET, "model.name=sft", "lora=ppo", "template=native", "train.learning_rate=2e-2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, seed, steps in (("sft", 0, 10), ("other", 1, 4)):
            words = [*SMALL, *QUIET, f"seed={seed}", "train.learning_rate=3e-3", f"train.max_steps={steps}"]
            sft.run(compose_job("sft", words), Path(name))
        for name, steps, rank in (("adapter", 3, 4), ("far", 6, 2)):
            sft.run(compose_job("sft", [*lora, f"lora.r={rank}", f"train.max_steps={steps}"]), Path(name))
        job, record = command_job("merge", [], model={"name": "far"})
        merge(job, out=Path("merged"), record=record)
        shutil.copytree("sft", "same")  # the same weights, by another configuration: another base
        config = json.loads(Path("same/config.json").read_text())
        Path("same/config.json").write_text(json.dumps(config | {"note": "other"}))
        shutil.rmtree("same/checkpoints")
        for name in ("run.json", "checksums.json"):
            (Path("same") / name).unlink()
    return folder


@pytest.fixture
def job(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job of two updates of eight completions, in a folder of its own; words override."""
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)

    def make(*words: str) -> PpoJob:
        sizes = ["ppo.num_updates=2", "ppo.num_prompts=8", "ppo.num_mini_batches=1"]
        sizes += ["train.per_device_train_batch_size=8", "sampling.max_new_tokens=8", "train.save_steps=1"]
        reward = ["reward=[{function: 'rewards.py:length'}]", "data.eval_fraction=0.25", "train.eval_steps=1"]
        return compose_job("ppo", [*QUIET, "model.name=sft", *sizes, *reward, "train.learning_rate=1e-3", *words])

    return make


def run(job: PpoJob, run_dir: str = "out") -> None:
    ppo.run(job, Path(run_dir))


def metrics(run_dir: str, key: str) -> list[Any]:
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def weights(run_dir: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(run_dir).glob("*.safetensors")}


STARTS = {"full": [], "lora": ["lora=ppo", "lora.r=4"], "adapter": ["model.name=adapter"]}


@pytest.mark.parametrize("kind", STARTS)
def test_a_reference_that_is_what_the_policy_starts_from_gives_the_same_bits(job: Job, kind: str) -> None:
    start = "adapter" if kind == "adapter" else "sft"
    run(job(*STARTS[kind]), "unnamed")
    run(job(*STARTS[kind], f"reference.name={start}"), "named")
    assert metrics("named", "eval_kl") == metrics("unnamed", "eval_kl")
    assert metrics("named", "eval_kl")[0] == 0.0 != metrics("named", "eval_kl")[-1]
    assert weights("named") == weights("unnamed")


@pytest.mark.parametrize(
    ("words", "shared", "beside"),
    [
        (STARTS["lora"], "far", "merged"),  # a further adapter on the backbone, and its weights merged
        (STARTS["adapter"], "far", "merged"),
        (STARTS["adapter"], "sft", "same"),  # the backbone without its adapter, and a copy of it
    ],
)
def test_on_the_policys_backbone_a_reference_is_what_it_is_alone(
    job: Job, words: list[str], shared: str, beside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    once = [*words, "ppo.num_updates=1", "ppo.num_ppo_epochs=1"]
    run(job(*once, f"reference.name={shared}"), "shared")
    said = capsys.readouterr().out
    assert f"\nreference {shared}\n" in said
    assert "\nmemory    one copy of the backbone" in said
    assert f"\nKL to             {shared}\n" in said
    run(job(*once, f"reference.name={beside}"), "beside")
    assert (
        f"\nmemory    two models: a copy of the backbone with an adapter, the policy, and the reference {beside}"
        in (capsys.readouterr().out)
    )
    assert metrics("shared", "eval_kl") == pytest.approx(metrics("beside", "eval_kl"), rel=1e-3)
    assert abs(metrics("shared", "eval_kl")[0]) > 0.01


def test_the_penalty_draws_the_policy_to_the_named_model(job: Job) -> None:
    words = ["reference.name=other", "ppo.num_updates=8", "train.learning_rate=5e-3", "train.eval_steps=8"]
    run(job(*words, "ppo.kl_coef=2.0", "ppo.whiten_advantages=false", "train.load_best_model_at_end=false"), "near")
    first, last = metrics("near", "eval_kl")
    assert first > 0.4
    assert last < 0.9 * first


@pytest.mark.parametrize("words", [["reference.name=other"], [*STARTS["lora"], "reference.name=far"]])
def test_resumed_it_gives_the_same_bits(job: Job, words: list[str]) -> None:
    run(job(*words), "whole")
    shutil.copytree("whole", "parts")
    shutil.rmtree("parts/checkpoints/checkpoint-2")
    record = json.loads(Path("parts/run.json").read_text())
    Path("parts/run.json").write_text(json.dumps(record | {"status": "failed"}))
    run(job(*words, "resume=true"), "parts")
    assert weights("parts") == weights("whole")
    for key in ("objective/kl", "eval_kl"):
        assert metrics("parts", key) == metrics("whole", key)


def test_what_cannot_be_a_reference_is_refused(job: Job) -> None:
    with pytest.raises(ConfigError) as caught:
        run(job("reference.name=nothing", "reference.keep=true", "ppo.kl_coef=0"))
    assert str(caught.value).splitlines() == [
        "reference.name: there is no folder 'nothing', and the hub cannot be reached to look there",
        "reference.name=nothing has no effect with ppo.kl_coef=0, which measures no KL",
        "reference.keep has no effect on PPO, whose completions are new in every update: leave it out",
    ]
    assert not Path("out").exists()


def test_signs_of_divergence_say_from_what(job: Job) -> None:
    with pytest.raises(TrainingError, match="the policy has moved far from other; raise"):
        run(job("reference.name=other", "ppo.max_kl=0.001", "ppo.health=stop"))


def test_each_of_several_rewards_has_its_own_curve(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        "alignkit.ppo.record.plot_panels", lambda history, panels, path, xlabel: bool(drawn.update(panels))
    )
    run(job("reward=[{function: 'rewards.py:length'}, {function: 'rewards.py:marks', weight: 2}]"))
    length, marks = (f"rewards.py:{name}" for name in ("length", "marks"))
    for start in ("", "eval_"):
        total = metrics("out", "eval_score" if start else "objective/score")
        parts = zip(metrics("out", f"{start}score/{length}"), metrics("out", f"{start}score/{marks}"), strict=True)
        assert total == pytest.approx([one + 2 * two for one, two in parts])
    assert drawn[marks] == {f"score/{marks}": "training", f"eval_score/{marks}": "held out"}
