"""Mistakes in a PPO job: a line each, all together, before a model is loaded or anything is written."""

import importlib.util
from pathlib import Path

import pytest

from alignkit.errors import ConfigError
from alignkit.launch import command_job, compose_job
from alignkit.runs.given import Given
from alignkit.stages.ppo import run as ppo
from alignkit.stages.ppo.advantage import settled_given
from alignkit.stages.ppo.check import check_job
from alignkit.training import sharding

BASIS = ["model=tiny_gpt2", "data.path=rows.jsonl", "template=instruction", "reward=[{function: 'mine.py:length'}]"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "Why?"}\n' * 4)
    Path("mine.py").write_text("def length(prompts, completions): return [len(c) for c in completions]\n")
    return tmp_path


def problems(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_job(compose_job("ppo", [*BASIS, *words]))
    return list(caught.value.problems)


def test_the_basis_is_right() -> None:
    check_job(compose_job("ppo", BASIS))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["reward=[]"], "reward is missing: give a list of sources"),
        (
            ["ppo.num_prompts=10"],
            "ppo.num_prompts=10 × ppo.num_generations=1 = 10 completions do not divide into ppo.num_mini_batches=4 "
            "equal minibatches: take ppo.num_prompts=8 or 12, or another ppo.num_mini_batches",
        ),
        (
            ["ppo.num_prompts=3", "ppo.num_generations=4", "train.per_device_train_batch_size=8"],
            "ppo.num_prompts=3 × ppo.num_generations=4 = 12 completions are ppo.num_mini_batches=4 minibatches of 3, "
            "which are no whole passes of train.per_device_train_batch_size=8: take "
            "train.per_device_train_batch_size=3",
        ),
        (["sampling.top_k=5"], "sampling.top_k=5: the sampler would be another distribution than the policy"),
        (["sampling.top_p=0.5"], "sampling.top_p=0.5: the sampler would be another distribution than the policy"),
        (["sampling.repetition_penalty=2"], "sampling.repetition_penalty=2: the sampler would be another"),
        (["sampling.do_sample=false", "sampling.temperature=null"], "sampling.do_sample=false: PPO learns from draws"),
        (["sampling.do_sample=null", "sampling.temperature=null"], "sampling.temperature=null: PPO learns from draws"),
        (["sampling.stop=[x]"], "sampling.stop has no effect on PPO, which learns when to end"),
        (["lora=default"], "lora.lora_dropout=0.1: with dropout the policy that samples is not the policy"),
        (
            ["lora=ppo", "lora.init_lora_weights=pissa_niter_4"],
            "lora.init_lora_weights=pissa_niter_4: the base without",
        ),
        (["lora=ppo", "lora.init_lora_weights=false"], "lora.init_lora_weights=false: the base without its adapter is"),
        (["lora=ppo", "lora.bias=all"], "lora.bias=all: the base without its adapter is the reference, and must be"),
        (["model.config.attn_pdrop=0.1"], "model.config.attn_pdrop=0.1: with dropout the policy that samples"),
        (["ppo.kl_target=6", "ppo.kl_coef_end=0"], "ppo.kl_target steers ppo.kl_coef and ppo.kl_coef_end draws it"),
        (["ppo.kl_target=6", "ppo.kl_coef=0"], "ppo.kl_target has no effect with ppo.kl_coef=0"),
        (["value.model=own", "value.detach=true"], "value.detach has no effect with value.model=own: its loss never"),
        (
            ["value.model=adapter"],
            "value.model=adapter needs a policy that is one too: lora=ppo puts LoRA on it,",
        ),
        (
            [
                *("lora=ppo", "value.model=adapter", "train.gradient_checkpointing=true"),
                "train.gradient_checkpointing_kwargs={use_reentrant: true}",
            ],
            "use_reentrant=true cannot tell adapters apart, and value.model=adapter has two: leave it out",
        ),
        (["ppo.vf_coef=0", "value.learning_rate=1"], "value.learning_rate=1.0 has no effect with ppo.vf_coef=0, which"),
        (["value.warmup_updates=100"], "value.warmup_updates=100 leaves none of ppo.num_updates=100"),
        (["train.eval_strategy=steps"], "train.eval_strategy needs held-out rows"),
        (["train.eval_steps=5"], "train.eval_steps needs held-out rows"),
        (["train.warmup_steps=5"], "train.warmup_steps=5 has no effect with train.lr_scheduler_type=constant: take"),
        (["early_stopping=3"], "early_stopping needs held-out rows"),
        (["data.streaming=true"], "data.streaming=true has no effect here"),
        (["sampling.min_new_tokens=99"], "sampling.min_new_tokens=99 is more than sampling.max_new_tokens=64"),
    ],
)
def test_a_mistake_is_a_line(words: list[str], line: str) -> None:
    (found,) = problems(*words)
    assert found.startswith(line)


GRPO = ["ppo.advantage=grpo", "ppo.num_generations=4"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["ppo.advantage=grpo"], "ppo.num_generations=1: ppo.advantage=grpo compares the completions of a prompt with"),
        (["ppo.advantage=rloo"], "ppo.num_generations=1: ppo.advantage=rloo compares the completions of a prompt with"),
        ([*GRPO, "ppo.vf_coef=0.1"], "ppo.vf_coef=0.1 has no effect with ppo.advantage=grpo: it has no value function"),
        ([*GRPO, "ppo.lam=0.95"], "ppo.lam=0.95 has no effect with ppo.advantage=grpo: it has no value function"),
        ([*GRPO, "ppo.clip_range_value=inf"], "ppo.clip_range_value=inf has no effect with ppo.advantage=grpo: it has"),
        (
            [*GRPO, "ppo.gamma=1"],
            "ppo.gamma=1.0 has no effect with ppo.advantage=grpo: every token of a completion has",
        ),
        (["ppo.advantage=reinforce", "ppo.lam=1"], "ppo.lam=1.0 has no effect with ppo.advantage=reinforce: it has no"),
        (
            [*GRPO, "ppo.whiten_advantages=false"],
            "ppo.whiten_advantages=false has no effect with ppo.advantage=grpo: the advantages of each group",
        ),
        (
            ["ppo.advantage=reinforce", "ppo.whiten_advantages=false"],
            "ppo.whiten_advantages=false: ppo.advantage=reinforce has no other scale; leave it out",
        ),
        ([*GRPO, "value.learning_rate=1"], "value.learning_rate=1.0: ppo.advantage=grpo has no value function; leave"),
        ([*GRPO, "value.start=run"], "value.start=run: ppo.advantage=grpo has no value function; leave it out"),
        ([*GRPO, "value.model=adapter"], "value.model=adapter: ppo.advantage=grpo has no value function; leave it out"),
        (
            [*GRPO, "ppo.score_scaling=running"],
            "ppo.score_scaling=running has no effect with ppo.advantage=grpo, which",
        ),
        (
            [*GRPO, "ppo.kl_target=6"],
            "ppo.kl_target=6.0 adapts a KL penalty in the reward, which with ppo.advantage=gr",
        ),
        (["ppo.kl_as=loss", "ppo.kl_target=6"], "ppo.kl_target=6.0 adapts a KL penalty in the reward, which is in"),
        (["ppo.kl_coef=0", "ppo.max_kl=9"], "ppo.max_kl=9.0 has no effect with ppo.kl_coef=0: no reference is held"),
        (
            ["ppo.refill_flat_groups=1"],
            "ppo.refill_flat_groups=1 has no meaning with ppo.advantage=gae, which does not",
        ),
        (
            ["ppo.mask_truncated=true", "ppo.missing_eos_penalty=1"],
            "ppo.missing_eos_penalty=1.0 has no effect beside ppo.mask_truncated=true: the loss does not see",
        ),
        (
            ["ppo.overlong={from: 9, to: 9, penalty: 1}"],
            "ppo.overlong: from=9 is not below to=9, and the penalty grows",
        ),
        (
            ["ppo.overlong={from: 9, to: 99, penalty: 1}"],
            "ppo.overlong.to=99 is never reached: sampling.max_new_tokens",
        ),
        (["ppo.overlong={from: 1.5, to: 9, penalty: 1}"], "ppo.overlong.from is 1.5: it must be a number of tokens"),
        (["ppo.overlong={from: 1, to: 9, penalty: 0}"], "ppo.overlong.penalty is 0: it must be a number above 0"),
        (["ppo.overlong={from: 1, to: 9}"], "ppo.overlong.penalty is missing: give from, to and penalty"),
        (
            ["ppo.overlong={from: 1, to: 9, penalty: 1, penalti: 2}"],
            "unknown key 'ppo.overlong.penalti'; did you mean 'penalty'?",
        ),
    ],
)
def test_a_setting_without_a_meaning_beside_the_estimator_is_a_line(words: list[str], line: str) -> None:
    (found,) = problems(*words)
    assert found.startswith(line)


@pytest.mark.parametrize(
    "words",
    [
        [*GRPO, "ppo.kl_as=reward", "ppo.kl_target=6"],
        [*GRPO, "ppo.mask_truncated=true", "ppo.missing_eos_penalty=1"],  # it counts in the group
        ["ppo.advantage=dr_grpo", "ppo.num_generations=2", "ppo.score_scaling=running"],
        ["ppo.advantage=rloo", "ppo.num_generations=2", "ppo.whiten_advantages=true", "ppo.kl_target=6"],
        ["ppo.advantage=reinforce", "ppo.gamma=0.9", "ppo.whiten_advantages=true", "ppo.kl_target=6"],
        ["ppo.kl_as=loss", "ppo.loss_over=constant", "ppo.clip_range_high=0.3", "ppo.dual_clip=3"],
        ["ppo.overlong={from: 32, to: 64, penalty: 0.5}", "ppo.ratio_over=completion", "ppo.clip_range_value=inf"],
    ],
    ids=" ".join,
)
def test_what_has_a_meaning_beside_the_estimator_can_be_given(words: list[str]) -> None:
    check_job(compose_job("ppo", [*BASIS, *words]))


@pytest.mark.parametrize(("num_prompts", "size"), [(64, 8), (16, 4), (12, 3), (40, 5), (44, 1)])
def test_completions_in_a_pass_follow_the_minibatch_where_they_are_not_given(num_prompts: int, size: int) -> None:
    job = compose_job("ppo", [*BASIS, f"ppo.num_prompts={num_prompts}"])
    check_job(job)
    assert job.train["per_device_train_batch_size"] == size


def test_the_record_has_the_size_of_a_pass_that_was_chosen() -> None:
    job, record = command_job("ppo", [*BASIS, "ppo.num_prompts=16"])
    settled = settled_given(job, Given(record))
    assert settled is not None
    assert settled.settings["train"]["per_device_train_batch_size"] == 4
    assert settled.origins["train.per_device_train_batch_size"] == "the size of a minibatch"


def test_mistakes_are_told_together() -> None:
    found = problems("reward=[{function: 'gone.py:f'}]", "sampling.top_k=5", "lora=default", "ppo.num_prompts=9")
    assert len(found) == 4


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("ppo.kl_coef=-1", "ppo.kl_coef is -1.0: it must be at least 0"),
        ("ppo.lam=1.5", "ppo.lam is 1.5: it must be at least 0 and at most 1"),
        ("ppo.gamma=-0.1", "ppo.gamma is -0.1: it must be at least 0 and at most 1"),
        ("ppo.num_generations=0", "ppo.num_generations is 0: it must be at least 1"),
        ("ppo.advantage=GRPO", "ppo.advantage is 'GRPO': choose gae, grpo, dr_grpo, rloo, reinforce, reinforce_basel"),
        ("ppo.loss_over=token", "ppo.loss_over is 'token': choose tokens, completions, constant; did you mean"),
        ("ppo.dual_clip=1", "ppo.dual_clip is 1.0: it must be above 1"),
        ("ppo.clip_range_high=0", "ppo.clip_range_high is 0.0: it must be above 0"),
        ("ppo.refill_flat_groups=-1", "ppo.refill_flat_groups is -1: it must be at least 0"),
        ("ppo.health=loud", "ppo.health is 'loud': choose off, warn, stop"),
        ("train.max_steps=3", "train.max_steps cannot be set here: use ppo.num_updates"),
        ("train.gradient_accumulation_steps=3", "train.gradient_accumulation_steps cannot be set here: a minibatch is"),
        ("train.deepspeed=zero3.json", "train.deepspeed cannot be set here: PPO is sharded by FSDP alone: take train."),
        ("ppo.num_update=3", "unknown key 'ppo.num_update'; did you mean 'ppo.num_updates'?"),
        ("train.num_updates=3", "unknown key 'num_updates' in 'train'"),
    ],
)
def test_a_mistake_that_composing_finds(words: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_job("ppo", [*BASIS, words])
    (found,) = caught.value.problems
    assert found.startswith(line)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if by accelerate, where there are GPUs."""
    monkeypatch.setattr(sharding, "has_gpu", lambda train: True)
    monkeypatch.setenv("LOCAL_RANK", "0")
    return monkeypatch


def test_a_policy_can_be_sharded(launched: pytest.MonkeyPatch) -> None:
    check_job(compose_job("ppo", [*BASIS, "train.fsdp=true", "ppo.gather=layers"]))
    # what `accelerate config` proposes
    proposed = {"RESHARD_AFTER_FORWARD": "true", "OFFLOAD_PARAMS": "false", "STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
    proposed |= {"CPU_RAM_EFFICIENT_LOADING": "true", "ACTIVATION_CHECKPOINTING": "false", "VERSION": "2"}
    for name, value in proposed.items():
        launched.setenv(f"FSDP_{name}", value)
    launched.setenv("ACCELERATE_USE_FSDP", "true")
    check_job(compose_job("ppo", BASIS))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation_checkpointing", True),
        ("reshard_after_forward", False),
        ("cpu_offload", True),
    ],
)
def test_what_of_fsdp_a_policy_cannot_have(launched: pytest.MonkeyPatch, name: str, value: object) -> None:
    (line,) = problems("train.fsdp=true", f"train.fsdp_config={{{name}: {value}}}")
    assert line.startswith(f"fsdp_{name}={str(value).lower()} cannot be set with PPO: ")
    for variable, said in {"ACCELERATE_USE_FSDP": True, "FSDP_VERSION": 2, f"FSDP_{name.upper()}": value}.items():
        launched.setenv(variable, str(said))
    assert problems() == [line]


def test_the_older_form_of_fsdp_is_refused(launched: pytest.MonkeyPatch) -> None:
    (line,) = problems("train.fsdp=shard_grad_op")
    assert line == "train.fsdp='shard_grad_op' with PPO: take train.fsdp=true, and train.fsdp_config for the rest"


def test_zero_is_refused(launched: pytest.MonkeyPatch) -> None:
    launched.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    find = importlib.util.find_spec
    launched.setattr(importlib.util, "find_spec", lambda name: name == "deepspeed" or find(name))  # as if installed
    launched.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    launched.setenv("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "true")
    (line,) = problems()
    assert line.startswith("DeepSpeed: PPO is sharded by FSDP alone: launch it with FSDP version 2")


def test_gathering_has_no_effect_on_whole_weights() -> None:
    (line,) = problems("ppo.gather=once")
    assert line == "ppo.gather=once has no effect where FSDP shards no weights: leave it out"


def test_truncated_sampling_can_be_asked_for() -> None:
    check_job(compose_job("ppo", [*BASIS, "sampling.top_k=5", "ppo.allow_truncated_sampling=true"]))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sampling.max_new_tokens=512"], "sampling.max_new_tokens=512 leaves no room for a prompt: the model has 512"),
        (["data.max_length=500"], "data.max_length=500 with sampling.max_new_tokens=64 is more than the model's 512"),
    ],
)
def test_no_room_is_told_before_weights_are_loaded(words: list[str], line: str, folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        ppo.run(compose_job("ppo", [*BASIS, *words]), Path("out"))
    assert str(caught.value).startswith(line)
    assert not Path("out").exists()
