"""Our settings, typed, each with its default, its help line and its bounds.

`train` and `lora` are open on purpose: they are keyword arguments of the trainer's and PEFT's own classes, checked
against those by `alignkit.upstream`, never mirrored here. Later stages reuse these sections under the same names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Any, ClassVar

MISSING: Any = "???"  # a setting that must be given, as OmegaConf writes it


# Members are spelled as they are written in YAML, because OmegaConf matches an enum's names.
class Init(StrEnum):
    pretrained = "pretrained"
    random = "random"


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantization(StrEnum):
    none = "none"
    int8 = "int8"
    nf4 = "nf4"


class Overlength(StrEnum):
    drop = "drop"
    keep_end = "keep_end"
    keep_start = "keep_start"


class Malformed(StrEnum):
    stop = "stop"
    drop = "drop"


class TrainOn(StrEnum):
    assistant = "assistant"
    last_turn = "last_turn"
    everything = "everything"


class ControlTokens(StrEnum):
    refuse = "refuse"
    neutralise = "neutralise"


class OnError(StrEnum):
    stop = "stop"
    skip = "skip"


class Health(StrEnum):
    off = "off"
    warn = "warn"
    stop = "stop"


class ScoreScaling(StrEnum):
    none = "none"
    running = "running"


class ValueModel(StrEnum):
    shared = "shared"
    adapter = "adapter"
    own = "own"


class Batching(StrEnum):
    auto = "auto"
    padded = "padded"
    grouped = "grouped"
    packed = "packed"


def setting(help: str, default: Any = MISSING, *, schedule: type | None = None, **bounds: float) -> Any:
    """A field with its help line and, where they exist, its bounds (`ge`, `gt`, `le`, `lt`).

    `schedule` is the type of a number that may also be `{start: …, end: …}`; such a field is annotated `Any`, because
    OmegaConf has no such union, and `out_of_bounds` checks its type.
    """
    metadata = {"help": help, "schedule": schedule, **bounds}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelConfig:
    name: str = setting("hub id, model folder, or run directory")
    init: Init = setting("pretrained weights, or random ones built from model.config", Init.pretrained)
    dtype: Dtype = setting("weights: auto takes bfloat16 where the device has it, else float32", Dtype.auto)
    attn_implementation: str | None = setting("eager, sdpa, flash_attention_2, …; null lets transformers choose", None)
    quantization: Quantization = setting(
        "load the frozen base in 8 bits (int8) or 4 (nf4); needs bitsandbytes", Quantization.none
    )
    revision: str | None = setting("branch, tag or commit of a hub model", None)
    trust_remote_code: bool = setting("run Python code that came with the model", False)
    config: dict[str, Any] = setting("architecture of a random model: model_type and its sizes", {})


@dataclass
class DataConfig:
    path: Any = setting("file, folder, glob or hub id; or a list of them or of {path, weight, format, columns, split}")
    format: str = setting("auto, a format's name, or module:function of your own", "auto")
    columns: dict[str, Any] = setting("field: column, or a path into nested data such as instances.0.input", {})
    split: str | None = setting("split of a hub data set, such as train or train[:10%]; null takes train", None)
    eval_path: Any = setting("held-out rows: like path, or {name: path, …} for several sets", None)
    eval_fraction: float = setting("share of prompts held out from path", 0.0, ge=0, lt=1)
    limit: int | None = setting("read at most this many rows, for each of path and eval_path", None, ge=1)
    shuffle: bool = setting("reshuffle the rows every epoch", True)
    max_length: int | None = setting("most tokens in a row; null takes the model's positions, at most 2048", None, ge=1)
    overlength: Overlength = setting("a row longer than that: drop, keep_end or keep_start", Overlength.drop)
    malformed: Malformed = setting("a row that cannot be read: stop the run, or drop and count it", Malformed.stop)
    max_dropped: float = setting("most rows that may be dropped, as a share", 0.05, ge=0, le=1)
    train_on: TrainOn = setting("what the loss sees: assistant, last_turn or everything", TrainOn.assistant)
    control_tokens: ControlTokens = setting(
        "special tokens typed in the text: refuse (drop the row) or neutralise (plain characters)", ControlTokens.refuse
    )
    batching: Batching = setting("auto, padded, grouped (by length) or packed (no padding)", Batching.auto)
    num_proc: int = setting("processes that format and encode", 1, ge=1)
    streaming: bool = setting(
        "read rows as training goes, for data that does not fit; shuffle then mixes within 10,000 rows", False
    )


@dataclass
class TemplateConfig:
    # native: a run directory keeps the template it was trained with in its tokenizer.
    name: str = setting("a shipped template, or native for the tokenizer's own", "native")
    file: str | None = setting("a Jinja chat template of your own, with {% generation %} markers", None)


@dataclass
class SamplingConfig:
    do_sample: bool | None = setting("draw tokens, or take the likeliest; null draws if a setting below asks", None)
    temperature: Any = setting("divides the logits; below 1 sharper, above 1 flatter", None, schedule=float, gt=0)
    top_k: Any = setting("draw from the k likeliest tokens", None, schedule=int, ge=1)
    top_p: Any = setting("draw from the smallest set with this probability", None, schedule=float, gt=0, le=1)
    min_p: Any = setting(
        "draw from tokens at least this share of the likeliest one's probability", None, schedule=float, ge=0, le=1
    )
    repetition_penalty: Any = setting("above 1 makes tokens seen before less likely", None, schedule=float, gt=0)
    max_new_tokens: int = setting("longest response, in tokens", 256, ge=1)
    min_new_tokens: int = setting("shortest response, in tokens", 0, ge=0)
    stop: list[str] = setting("texts that end a response, which is cut before them", [])


@dataclass
class StageJob:
    """What the four stages have in common.

    `train` is laid over the stage's own choices among upstream's arguments, so that a job built in Python trains as
    the command does.
    """

    stage: ClassVar[str]
    name: str = setting("the run is runs/<command>/<name>", "default")
    seed: int = setting("of every random draw", 0, ge=0)
    resume: bool = setting("continue an unfinished run from its newest sound checkpoint", False)
    overwrite: bool = setting("delete a finished run of this name first", False)
    early_stopping: int | None = setting(
        "stop after this many evaluations without improvement, and keep the best", None, ge=1
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    lora: dict[str, Any] = setting("peft.LoraConfig; empty trains every weight", {})
    train: dict[str, Any] = setting("arguments of the trainer", {})

    def __post_init__(self) -> None:
        self.train = {**stage_arguments(self.stage), **self.train}


@dataclass
class SampledJob(StageJob):
    """A stage whose model answers a few prompts before and after training."""

    samples: int = setting("prompts answered before and after training, written to samples.jsonl", 3, ge=0)
    # Samples are a glance before and after, not an evaluation.
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_new_tokens=128))


@dataclass
class SftJob(SampledJob):
    stage: ClassVar[str] = "sft"
    # Training usually starts from a base model, whose tokenizer has no template of its own.
    template: TemplateConfig = field(default_factory=lambda: TemplateConfig("instruction"))
    train: dict[str, Any] = setting("trl.SFTConfig, which is transformers.TrainingArguments and more", {})


@dataclass
class RewardJob(StageJob):
    stage: ClassVar[str] = "reward"
    use_margin: bool = setting(
        "subtract the pairs' margin column from the difference of scores, where they have one", True
    )
    train: dict[str, Any] = setting("trl.RewardConfig, which is transformers.TrainingArguments and more", {})


@dataclass
class ReferenceConfig:
    name: str | None = setting("another model as the reference; null is the policy as it was at the start", None)
    keep: bool = setting(
        "compute its log-probabilities once, before training, and keep them in runs/dpo/.reference for later runs",
        False,
    )


@dataclass
class DpoJob(SampledJob):
    stage: ClassVar[str] = "dpo"
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    train: dict[str, Any] = setting("trl.DPOConfig, which is transformers.TrainingArguments and more", {})


@dataclass
class PromptLength:
    min: int | None = setting("plain text becomes a prompt of its first tokens: at least this many", None, ge=1)
    max: int | None = setting("and at most this many, drawn per row from the seed", None, ge=1)


@dataclass
class PromptDataConfig(DataConfig):
    """Rows as prompts: what concerns responses or batches of `DataConfig` has no effect here and is refused."""

    prompt_length: PromptLength = field(default_factory=PromptLength)


@dataclass
class PpoConfig:
    num_updates: int = setting("length of training: rollouts, each followed by optimizer steps", 100, ge=1)
    num_prompts: int = setting("prompts in a rollout, over all processes", 64, ge=1)
    num_generations: int = setting("completions of each prompt in a rollout", 1, ge=1)
    num_ppo_epochs: int = setting("passes over a rollout", 4, ge=1)
    num_mini_batches: int = setting("optimizer steps in a pass", 4, ge=1)
    generation_batch_size: int = setting("completions written together by a process, at most", 64, ge=1)
    clip_range: float = setting("a token's probability moves its loss up to this relative change", 0.2, gt=0)
    clip_range_value: float | None = setting(
        "a token's value moves its loss up to this change, in the scale of the scores; null: without bound", 0.2, gt=0
    )
    vf_coef: float = setting("weight of the value loss", 0.1, ge=0)
    entropy_coef: float = setting("weight of the entropy bonus, for a policy that keeps exploring", 0.0, ge=0)
    gamma: float = setting("discount of later rewards", 1.0, ge=0, le=1)
    lam: float = setting("GAE: 0 trusts the values, 1 the rewards", 0.95, ge=0, le=1)
    whiten_advantages: bool = setting("advantages to mean 0 and variance 1 over the rollout's tokens", True)
    kl_coef: float = setting("price of a nat of KL to the model training started from", 0.05, ge=0)
    kl_coef_end: float | None = setting("price at the last update, reached in a straight line", None, ge=0)
    kl_target: float | None = setting(
        "steer the price so that the KL of a completion becomes this, in nats", None, gt=0
    )
    kl_horizon: int = setting("rollouts in which the steered price may double or so", 10_000, ge=1)
    target_kl: float | None = setting("skip the rest of a rollout's passes once a pass moved further", None, gt=0)
    allow_truncated_sampling: bool = setting(
        "sample by top_k, top_p, min_p or a repetition penalty all the same", False
    )
    missing_eos_penalty: float | None = setting("taken off the score of a completion that did not end", None, gt=0)
    score_clip: float | None = setting("scores beyond this, of either sign, are cut to it", None, gt=0)
    score_scaling: ScoreScaling = setting(
        "scores as they are, or (running) less the mean of all so far and over their spread", ScoreScaling.none
    )
    keep_rollouts: int = setting("completions of each update written to rollouts.jsonl", 4, ge=0)
    show_every: int = setting("show two sample completions every so many updates; 0 never", 10, ge=0)
    health: Health = setting("signs of a training gone wrong: off, warn or stop", Health.warn)
    max_kl: float = setting("a KL per completion beyond this, in nats, is such a sign", 100.0, gt=0)


@dataclass
class ValueConfig:
    model: ValueModel = setting(
        "whose states the value head reads: the policy's (shared), those of the same backbone under a further LoRA "
        "adapter, or of a backbone of its own",
        ValueModel.shared,
    )
    start: str | None = setting(
        "a PPO run whose value function to go on from, or a reward run (for adapter and own); null: values start at 0",
        None,
    )
    learning_rate: float | None = setting("of the value function; null takes train.learning_rate", None, gt=0)
    warmup_updates: int = setting("first updates that train the value function alone", 0, ge=0)
    detach: bool = setting("keep the value loss from training the policy's own layers", False)


@dataclass
class PpoJob(SampledJob):
    stage: ClassVar[str] = "ppo"
    reward: list[Any] = setting("list of {function | classifier | model, weight, …}: scores add up", [])
    data: PromptDataConfig = field(default_factory=PromptDataConfig)
    samples: int = setting("prompts answered and scored before and after training, written to samples.jsonl", 5, ge=0)
    # The policy itself draws: at another temperature another policy does, and is trained as such.
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(do_sample=True, temperature=1.0, max_new_tokens=64)
    )
    ppo: PpoConfig = field(default_factory=PpoConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    train: dict[str, Any] = setting("transformers.TrainingArguments", {})


@dataclass
class CommandJob:
    """What the commands that look at a model have in common."""

    model: ModelConfig = field(default_factory=ModelConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)


@dataclass
class BatchedJob(CommandJob):
    """A command that scores rows or generates responses, several together."""

    seed: int = setting("of every random draw", 0, ge=0)
    batch_size: int = setting("rows scored, or responses generated, together", 16, ge=1)


@dataclass
class PromptedJob(BatchedJob):
    """A command that answers the rows of --prompts."""

    format: str = setting("format of the rows of --prompts: auto, a format's name, or module:function", "auto")
    columns: dict[str, Any] = setting("field: column, for the rows of --prompts", {})


@dataclass
class GenerateJob(PromptedJob):
    num_samples: int = setting("responses to each prompt", 1, ge=1)
    deterministic_rows: bool = setting(
        "one response at a time, whatever batch_size: each is the same to the last bit in any company", False
    )
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass
class CompareJob(PromptedJob):
    logprobs: bool = setting("show how the log-probability of each token of the first run's responses changes", False)
    # The likeliest tokens are the same each time: two models, not two draws, are compared.
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(do_sample=False))


@dataclass
class ChatJob(CommandJob):
    seed: int = setting("of every random draw", 0, ge=0)
    system: str | None = setting("the system prompt, where the template has a place for one", None)
    # Answers vary as a person expects of a chat, without the tail of unlikely tokens.
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(do_sample=True, temperature=1.0, top_p=0.9))


@dataclass
class EvaluateJob(BatchedJob):
    num_prompts: int = setting("held-out prompts to answer; 0 leaves it at the loss", 32, ge=0)
    num_samples: int = setting("responses to each prompt", 4, ge=1)
    precision: float | None = setting(
        "wished half-width of the reward's interval: suggests num_prompts and num_samples", None, gt=0
    )
    beta: float = setting("of the implicit reward beta · (ln π − ln π_ref) on --pairs", 0.1, gt=0)
    data: DataConfig = field(default_factory=DataConfig)
    # The model's own distribution: expectations are over it.
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(do_sample=True, temperature=1.0))


@dataclass
class TasksJob(BatchedJob):
    limit: int | None = setting("first rows of each task to take; null takes all", None, ge=1)
    num_fewshot: int | None = setting("solved rows shown before each; null takes what the task says", None, ge=0)


@dataclass
class ScoreJob(BatchedJob):
    # A row that cannot be scored says so where its score would be.
    data: DataConfig = field(default_factory=lambda: DataConfig(max_dropped=1.0))


@dataclass
class MergeJob(CommandJob):
    max_difference: float | None = setting(
        "most a log-probability may move, in nats; null takes 1e-4 in float32, 0.25 in bfloat16, 0.05 in float16",
        None,
        gt=0,
    )


@dataclass
class VerifyJob:
    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass
class NextJob(CommandJob):
    num_tokens: int = setting("likeliest tokens to show", 12, ge=1)
    temperatures: list[float] = setting("show one after the other, in place of sampling.temperature", [])
    # Greedy would leave one bar.
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(do_sample=True, temperature=1.0))


JOBS: dict[str, type] = {
    "sft": SftJob,
    "reward": RewardJob,
    "dpo": DpoJob,
    "ppo": PpoJob,
    "generate": GenerateJob,
    "next": NextJob,
    "chat": ChatJob,
    "compare": CompareJob,
    "evaluate": EvaluateJob,
    "tasks": TasksJob,
    "merge": MergeJob,
    "verify": VerifyJob,
    "score": ScoreJob,
}


def settings(job: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Every setting of a job, or of a section, with its dotted key and its value; plain ones first, then sections."""
    values = [(item, getattr(job, item.name)) for item in dataclasses.fields(job)]
    for item, value in values:
        if not dataclasses.is_dataclass(value):
            yield prefix + item.name, item, value
    for item, value in values:
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{prefix}{item.name}.")


@cache
def stage_arguments(stage: str) -> dict[str, Any]:
    """Upstream's arguments that a stage chooses itself; conf/<stage>.yaml holds them, each with its reason."""
    from omegaconf import OmegaConf  # not at the top: help asks this module for names, and is there at once

    text = resources.files("alignkit.conf").joinpath(f"{stage}.yaml").read_text("utf-8")
    chosen = OmegaConf.to_container(OmegaConf.select(OmegaConf.create(text), "train"))
    assert isinstance(chosen, dict)
    return {str(key): value for key, value in chosen.items()}


def out_of_bounds(job: Any) -> list[str]:
    """One line for each setting outside its bounds; empty where all is well."""
    problems = []
    for key, item, value in settings(job):
        if (number := item.metadata.get("schedule")) and value is not None:
            ends = value if isinstance(value, dict) and value.keys() == {"start", "end"} else {"": value}
            for end, part in ends.items():
                name = f"{key}.{end}".rstrip(".")
                problems += _no_number(name, part, number) or _outside(name, part, item.metadata)
        elif isinstance(value, (int, float)):
            problems += _outside(key, value, item.metadata)
    return problems


def _no_number(name: str, value: Any, number: type) -> list[str]:
    if isinstance(value, (int, number)) and not isinstance(value, bool):
        return []
    kind = "a whole number" if number is int else "a number"
    return [f"{name} is {value!r}: it must be {kind}, or {{start: …, end: …}} for one that moves"]


def _outside(name: str, value: float, metadata: Mapping[str, Any]) -> list[str]:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = {k: v for k, v in metadata.items() if k in words}
    held = {"ge": value >= bounds.get("ge", value), "gt": "gt" not in bounds or value > bounds["gt"]}
    held |= {"le": value <= bounds.get("le", value), "lt": "lt" not in bounds or value < bounds["lt"]}
    if all(held.values()):
        return []
    wanted = " and ".join(f"{words[k]} {v:g}" for k, v in bounds.items())
    return [f"{name} is {value}: it must be {wanted}"]
