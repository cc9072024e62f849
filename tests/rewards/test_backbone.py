"""Reward runs on the policy's backbone: the scores of a model of its own, and a policy that is left alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from alignkit.choices import Dtype, Init, Quantization
from alignkit.config import ModelConfig
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.launch import compose_job
from alignkit.models.adapters import Adapters
from alignkit.models.load import load_model, load_tokenizer
from alignkit.models.lora import build_lora
from alignkit.models.source import ModelSource
from alignkit.models.tiny import byte_tokenizer, random_model
from alignkit.rewards.backbone import Backbone, why_not_shared
from alignkit.rewards.load import load_rewards
from alignkit.rewards.sample import Sample
from alignkit.rewards.source import parse_rewards
from alignkit.stages.ppo import run as ppo
from alignkit.stages.reward import run as reward
from alignkit.stages.sft import run as sft

CPU = torch.device("cpu")
WORDS = ["one", "two", "three", "four", "five", "six"]
PAIRS = [
    {"prompt": f"Say {a} and {b}.", "chosen": f"{a}, {b}!", "rejected": f"{b * (1 + i % 3)}"}
    for i, a in enumerate(WORDS)
    for b in WORDS
]
SAMPLES = [
    Sample("x", Conversation((Message("user", row["prompt"]),)), row["chosen"] * (1 + n % 3))
    for n, row in enumerate(PAIRS[:7])
]
BASES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 128},
    "llama": {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "max_position_embeddings": 128,
    },
}
RUNS = {
    "gpt2-lora": ["model.name=gpt2", "lora=ppo", "lora.r=2"],
    "gpt2-all": ["model.name=gpt2", "lora=all_linear", "lora.r=2"],
    "llama-dora": ["model.name=llama", "lora=dora", "lora.r=2"],
    "elsewhere": ["model.name=other", "lora=ppo", "lora.r=2"],
    "norms": ["model.name=gpt2", "lora=ppo", "lora.r=2", "lora.modules_to_save=[ln_f]"],
    "full": ["model.name=gpt2"],
}
QUIET = ["train.report_to=none", "train.save_strategy='no'"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases whose tokenizers have no pad token, as GPT-2's; reward runs on them, and `adapter`, an SFT run."""
    folder = tmp_path_factory.mktemp("backbone")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in PAIRS))
    for name, seed in (("gpt2", 0), ("llama", 0), ("other", 1)):
        tokenizer = byte_tokenizer()
        random_model(BASES.get(name, BASES["gpt2"]), tokenizer=tokenizer, seed=seed).save_pretrained(folder / name)
        tokenizer.pad_token = None
        tokenizer.save_pretrained(folder / name)
    common = ["data.path=pairs.jsonl", "template=question_answer", "train.learning_rate=1e-2", *QUIET]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, words in RUNS.items():
            reward.run(compose_job("reward", [*common, "train.max_steps=4", *words]), Path(name))
        words = ["model.name=gpt2", "lora=ppo", "lora.r=4", "data.columns={output: chosen, instruction: prompt}"]
        sft.run(
            compose_job("sft", [*common, *words, "data.format=instruction", "train.max_steps=2", "samples=0"]),
            Path("adapter"),
        )
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def run_named(name: Path | str) -> ModelSource:
    return ModelSource.of(ModelConfig(str(name)))


def backbone(name: str) -> Backbone:
    """Under a policy: a fresh adapter on a base, or `adapter`, which is trained further."""
    section = ModelConfig(name, dtype=Dtype.float32)
    model = load_model(section, tokenizer=load_tokenizer(section), seed=0)
    if not isinstance(model, PeftModel):
        lora = build_lora({"r": 2, "target_modules": "attention"}, model)
        model = get_peft_model(model, lora).eval()  # type: ignore[assignment]  # PEFT's is no PreTrainedModel
    assert isinstance(model, PeftModel)
    for key, weight in model.named_parameters():
        if ".lora_B." in key:
            weight.data += torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) / 10
    return Backbone(Adapters(model), ModelSource.of(section).base)


@pytest.mark.parametrize(
    ("run", "policy"),
    [
        pytest.param("gpt2-lora", "gpt2", marks=pytest.mark.slow),
        *(("gpt2-lora", "adapter"), ("gpt2-all", "gpt2"), ("llama-dora", "llama")),
    ],
)
def test_the_scores_are_those_of_a_model_of_its_own_bit_for_bit(run: str, policy: str) -> None:
    """In float32 and on the CPU; GPT-2's run pads with an id that the policy's vocabulary does not have."""
    section, sources = ModelConfig(dtype=Dtype.float32), parse_rewards([{"model": run, "batch_size": 4}])
    own = load_rewards(sources, section, device=CPU)
    under = backbone(policy)
    model = under.adapters.model
    ids = torch.tensor([[5, 6, 7]])
    logits, trained = model(input_ids=ids).logits, {n for n, w in model.named_parameters() if w.requires_grad}
    shared = load_rewards(sources, section, device=CPU, backbone=under)
    assert str(own) == f"1 × {run} (a model of its own: every weight of the policy trains)"
    assert str(shared) == f"1 × {run} (on the policy's backbone)"
    found, wanted = shared.score(SAMPLES).total, own.score(SAMPLES).total
    assert len(set(wanted)) == len(SAMPLES)
    assert found == wanted
    assert torch.equal(model(input_ids=ids).logits, logits)
    assert {n for n, w in model.named_parameters() if w.requires_grad} == trained
    assert not [name for name in trained if "reward" in name]


def test_two_runs_sit_side_by_side() -> None:
    sources = parse_rewards([{"model": "gpt2-lora"}, {"model": "gpt2-all", "weight": -2}])
    section = ModelConfig(dtype=Dtype.float32)
    shared = load_rewards(sources, section, device=CPU, backbone=backbone("gpt2"))
    assert shared.score(SAMPLES) == load_rewards(sources, section, device=CPU).score(SAMPLES)
    assert str(shared).count("on the policy's backbone") == 2


@pytest.mark.parametrize(
    ("run", "why"),
    [
        ("full", "it is no adapter"),
        ("elsewhere", "its base is another"),
        ("norms", "it trains ln_f too"),
        ("gpt2-lora", None),
    ],
)
def test_what_cannot_be_shared_says_why(run: str, why: str | None) -> None:
    assert why_not_shared(run_named(run), backbone("gpt2")) == why
    rewards = load_rewards(parse_rewards([{"model": run}]), ModelConfig(), device=CPU, backbone=backbone("gpt2"))
    assert (f"(a model of its own: {why})" in str(rewards)) == (why is not None)
    assert all(score is not None for score in rewards.score(SAMPLES).total)


def test_a_backbone_that_is_not_what_the_run_was_trained_on_is_not_shared() -> None:
    under = backbone("gpt2")
    for base, why in (
        (ModelConfig("gpt2", quantization=Quantization.nf4), "the policy's backbone is quantized"),
        (ModelConfig("gpt2", init=Init.random), "the policy's backbone is random, and its own"),
    ):
        assert why_not_shared(run_named("gpt2-lora"), Backbone(under.adapters, ModelSource.of(base))) == why


def test_a_copy_of_the_base_is_the_base(tmp_path: Path) -> None:
    shutil.copytree("gpt2", tmp_path / "copy")
    under = Backbone(backbone("gpt2").adapters, run_named(tmp_path / "copy"))
    assert why_not_shared(run_named("gpt2-lora"), under) is None


def test_a_base_from_the_hub_is_known_by_its_commit(tmp_path: Path) -> None:
    under = backbone("gpt2").adapters
    under.model.get_base_model().config._commit_hash = "abc"
    for commit, asked_for, is_base in (
        ("abc", None, True),
        (None, None, True),
        ("def", None, False),
        ("def", "v1", False),
    ):
        said = {"base_model_name_or_path": "org/name", "revision": commit}
        (tmp_path / "adapter_config.json").write_text(json.dumps(said))
        base = ModelSource.of(ModelConfig("org/name", revision=asked_for))
        assert Backbone(under, base).is_base_of(run_named(tmp_path)) == is_base


@pytest.mark.parametrize("policy", ["gpt2", "adapter"])
def test_ppo_learns_the_same_bits_and_saves_the_policy_alone(
    policy: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lora = ["lora=ppo", "lora.r=2"] if policy == "gpt2" else []
    words = [f"model.name={policy}", *lora, "model.dtype=float32", "data.path=prompts.jsonl", "template=instruction"]
    sizes = ["ppo.num_updates=2", "ppo.num_prompts=8", "ppo.num_mini_batches=1", "sampling.max_new_tokens=6"]
    words += [*sizes, "train.learning_rate=1e-2", "train.report_to=none", "train.save_steps=1", "samples=1"]
    job: Callable[[], Any] = lambda: compose_job("ppo", [*words, "reward=[{model: gpt2-lora}]"])  # noqa: E731
    ppo.run(job(), tmp_path / "shared")
    said = capsys.readouterr().out
    assert "reward    1 × gpt2-lora (on the policy's backbone)\n" in said
    monkeypatch.setattr("alignkit.rewards.load.why_not_shared", lambda run, backbone: "for the sake of comparison")
    ppo.run(job(), tmp_path / "own")
    assert "1 × gpt2-lora (a model of its own: for the sake of comparison)" in capsys.readouterr().out
    for place in ("", "checkpoints/checkpoint-2"):
        shared, own = (tmp_path / name / place for name in ("shared", "own"))
        assert {path.name for path in shared.iterdir()} == {path.name for path in own.iterdir()}
        weights = load_file(shared / "adapter_model.safetensors")
        assert all(".lora_" in key and "reward" not in key for key in weights)
        for file in ("adapter_model.safetensors", "adapter_config.json", "value_head.safetensors"):
            assert (shared / file).read_bytes() == (own / file).read_bytes()
    assert (shared / "optimizer.pt").read_bytes() == (own / "optimizer.pt").read_bytes()
    rollouts = [(tmp_path / name / "rollouts.jsonl").read_bytes() for name in ("shared", "own")]
    assert rollouts[0] == rollouts[1]


def test_policy_reference_value_and_reward_are_hardly_more_than_one_backbone() -> None:
    under = backbone("adapter")
    under.adapters.copy("ref", trains=False)
    before = sum(w.numel() for w in under.adapters.model.parameters())
    load_rewards(parse_rewards([{"model": "gpt2-lora"}]), ModelConfig(), device=CPU, backbone=under)
    whole = sum(w.numel() for w in under.adapters.model.parameters())
    base = sum(w.numel() for w in load_model(under.base.config, tokenizer=byte_tokenizer(), seed=0).parameters())
    assert before < whole < 1.2 * base


def test_an_adapter_that_took_a_part_out_of_the_base_does_not_share_it(tmp_path: Path) -> None:
    """PEFT takes that part out again when it loads the run alone: on a whole backbone it would score otherwise."""
    run = shutil.copytree("gpt2-lora", tmp_path / "run")
    config = json.loads((run / "adapter_config.json").read_text())
    for key, value in (("init_lora_weights", "pissa"), ("bias", "all")):
        (run / "adapter_config.json").write_text(json.dumps(config | {key: value}))
        why = why_not_shared(run_named(run), backbone("gpt2"))
        assert why == "an adapter took a part out of the base, or changed its biases"
