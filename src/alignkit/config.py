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


class HealthPolicy(StrEnum):
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
    name: str = setting("model: a hub id, a model folder, or a run directory")
    init: Init = setting("initial weights: pretrained, or random in the architecture of model.config", Init.pretrained)
    dtype: Dtype = setting(
        "dtype of the weights; auto is bfloat16 where the device supports it, else float32", Dtype.auto
    )
    attn_implementation: str | None = setting(
        "attention implementation: eager, sdpa, flash_attention_2, …; null lets transformers choose", None
    )
    quantization: Quantization = setting(
        "load the frozen base weights in 8 bits (int8) or 4 bits (nf4); needs bitsandbytes", Quantization.none
    )
    revision: str | None = setting("branch, tag or commit of a hub model", None)
    trust_remote_code: bool = setting("run Python code that comes with the model", False)
    config: dict[str, Any] = setting(
        "architecture of a randomly initialized model: model_type and its sizes, as in config.json", {}
    )


@dataclass
class DataConfig:
    path: Any = setting(
        "data: a file, folder, glob or hub id, or a list of these or of {path, weight, format, columns, split}"
    )
    format: str = setting(
        "format of the rows: auto (detected from the columns), a format's name, or module:function of your own", "auto"
    )
    columns: dict[str, Any] = setting(
        "map from a field of the format to your column, or to a path into nested data such as instances.0.input", {}
    )
    split: str | None = setting("split of a hub data set, such as train or train[:10%]; null is train", None)
    eval_path: Any = setting("held-out data, given like data.path, or as {name: path, …} for several sets", None)
    eval_fraction: float = setting("fraction of the prompts of data.path to hold out for evaluation", 0.0, ge=0, lt=1)
    limit: int | None = setting(
        "maximum number of rows to read from each of data.path and data.eval_path; null reads all", None, ge=1
    )
    shuffle: bool = setting("shuffle the rows in every epoch", True)
    max_length: int | None = setting(
        "maximum number of tokens in a row; null is the model's number of positions, at most 2048", None, ge=1
    )
    overlength: Overlength = setting(
        "what to do with a row longer than data.max_length: drop it, keep its end (keep_end) or its start (keep_start)",
        Overlength.drop,
    )
    malformed: Malformed = setting(
        "what to do with a malformed row: stop the run, or drop the row and count it", Malformed.stop
    )
    max_dropped: float = setting(
        "maximum fraction of the rows that may be dropped; above it the run stops", 0.05, ge=0, le=1
    )
    train_on: TrainOn = setting(
        "tokens that carry loss: every response (assistant), the last response (last_turn), or everything",
        TrainOn.assistant,
    )
    control_tokens: ControlTokens = setting(
        "special tokens in the text of a row: refuse drops the row, neutralise encodes them as plain characters",
        ControlTokens.refuse,
    )
    batching: Batching = setting(
        "batch layout: padded, grouped by length, packed without padding, or auto (packed where that is exact)",
        Batching.auto,
    )
    num_proc: int = setting("number of processes that format and encode the rows", 1, ge=1)
    streaming: bool = setting(
        "read rows during training, for data larger than memory; shuffling is within a buffer of 10,000 rows", False
    )


@dataclass
class TemplateConfig:
    # native: a run directory keeps the template it was trained with in its tokenizer.
    name: str = setting("chat template: a shipped one, or native for the one in the model's tokenizer", "native")
    file: str | None = setting(
        "Jinja chat template of your own, with {% generation %} markers around what the assistant says", None
    )


@dataclass
class SamplingConfig:
    do_sample: bool | None = setting(
        "sample tokens (true) or decode greedily (false); null samples if temperature, top_k, top_p or min_p is set",
        None,
    )
    temperature: Any = setting(
        "sampling temperature, which divides the logits; below 1 sharper, above 1 flatter", None, schedule=float, gt=0
    )
    top_k: Any = setting("sample from the k most likely tokens", None, schedule=int, ge=1)
    top_p: Any = setting(
        "nucleus sampling: sample from the smallest set of tokens with at least this probability in total",
        None,
        schedule=float,
        gt=0,
        le=1,
    )
    min_p: Any = setting(
        "sample from the tokens with at least this fraction of the most likely token's probability",
        None,
        schedule=float,
        ge=0,
        le=1,
    )
    repetition_penalty: Any = setting(
        "above 1, tokens that have already occurred become less likely", None, schedule=float, gt=0
    )
    max_new_tokens: int = setting("maximum length of a response, in tokens", 256, ge=1)
    min_new_tokens: int = setting("minimum length of a response, in tokens", 0, ge=0)
    stop: list[str] = setting("strings that end a response; it is cut before them", [])


@dataclass
class StageJob:
    """What the four stages have in common.

    `train` is laid over the stage's own choices among upstream's arguments, so that a job built in Python trains as
    the command does.
    """

    stage: ClassVar[str]
    name: str = setting("name of the run, which is written to runs/STAGE/NAME", "default")
    seed: int = setting("seed of every random draw", 0, ge=0)
    resume: bool = setting("continue an unfinished run from its newest intact checkpoint", False)
    overwrite: bool = setting("delete an existing run of the same name first", False)
    early_stopping: int | None = setting(
        "stop after this many evaluations without improvement, and keep the best checkpoint; null never does",
        None,
        ge=1,
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    lora: dict[str, Any] = setting(
        "LoRA: arguments of peft.LoraConfig; empty trains all weights, or the adapter of a model that has one", {}
    )
    train: dict[str, Any] = setting("arguments of the trainer", {})

    def __post_init__(self) -> None:
        self.train = {**stage_arguments(self.stage), **self.train}


@dataclass
class SampledJob(StageJob):
    """A stage whose model answers a few prompts before and after training."""

    samples: int = setting("number of prompts answered before and after training, written to samples.jsonl", 3, ge=0)
    # Samples are a glance before and after, not an evaluation.
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_new_tokens=128))


@dataclass
class SftJob(SampledJob):
    stage: ClassVar[str] = "sft"
    # Training usually starts from a base model, whose tokenizer has no template of its own.
    template: TemplateConfig = field(default_factory=lambda: TemplateConfig("instruction"))
    train: dict[str, Any] = setting(
        "training: arguments of trl.SFTConfig, which extends transformers.TrainingArguments", {}
    )


@dataclass
class RewardJob(StageJob):
    stage: ClassVar[str] = "reward"
    use_margin: bool = setting(
        "subtract the margin column of the pairs, if they have one, from the score difference in the loss", True
    )
    train: dict[str, Any] = setting(
        "training: arguments of trl.RewardConfig, which extends transformers.TrainingArguments", {}
    )


@dataclass
class ReferenceConfig:
    name: str | None = setting("reference model; null is the policy at the start of training", None)
    keep: bool = setting(
        "compute the reference log-probabilities once, before training, and cache them in runs/dpo/.reference"
        " for later runs",
        False,
    )


@dataclass
class DpoJob(SampledJob):
    stage: ClassVar[str] = "dpo"
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    train: dict[str, Any] = setting(
        "training: arguments of trl.DPOConfig, which extends transformers.TrainingArguments", {}
    )


@dataclass
class PromptLength:
    min: int | None = setting("minimum length, in tokens, of prompts that are beginnings of plain texts", None, ge=1)
    max: int | None = setting(
        "maximum length, in tokens, of prompts that are beginnings of plain texts; each length is drawn from the seed",
        None,
        ge=1,
    )


@dataclass
class PromptDataConfig(DataConfig):
    """Rows as prompts: what concerns responses or batches of `DataConfig` has no effect here and is refused."""

    prompt_length: PromptLength = field(default_factory=PromptLength)


@dataclass
class PpoConfig:
    num_updates: int = setting(
        "number of PPO updates; each one generates a rollout and takes optimizer steps on it", 100, ge=1
    )
    num_prompts: int = setting("number of prompts per rollout, over all processes", 64, ge=1)
    num_generations: int = setting("number of completions per prompt in a rollout", 1, ge=1)
    num_ppo_epochs: int = setting("number of optimization passes over each rollout", 4, ge=1)
    num_mini_batches: int = setting("number of minibatches, each one optimizer step, per pass over a rollout", 4, ge=1)
    generation_batch_size: int = setting("maximum number of completions that a process generates together", 64, ge=1)
    clip_range: float = setting("PPO clip range ε: the ratio π/π_old is clipped to [1−ε, 1+ε]", 0.2, gt=0)
    clip_range_value: float | None = setting(
        "value clip range: a new value is clipped to ± this around the value of the rollout; null does not clip",
        0.2,
        gt=0,
    )
    vf_coef: float = setting("coefficient of the value loss", 0.1, ge=0)
    entropy_coef: float = setting("coefficient of the entropy bonus, which keeps the policy exploring", 0.0, ge=0)
    gamma: float = setting("discount factor γ of later rewards", 1.0, ge=0, le=1)
    lam: float = setting("GAE λ: 0 is the one-step TD error, 1 the full return less the value", 0.95, ge=0, le=1)
    whiten_advantages: bool = setting(
        "whiten the advantages to mean 0 and variance 1 over the tokens of the rollout", True
    )
    kl_coef: float = setting("KL penalty coefficient β (per nat, against the reference policy)", 0.05, ge=0)
    kl_coef_end: float | None = setting("final kl_coef; annealed linearly; null keeps it constant", None, ge=0)
    kl_target: float | None = setting(
        "adaptive KL: target KL per completion, in nats; null keeps kl_coef fixed", None, gt=0
    )
    kl_horizon: int = setting(
        "adaptive KL: number of completions over which kl_coef adapts; fewer adapt it faster", 10_000, ge=1
    )
    target_kl: float | None = setting(
        "skip the remaining passes over a rollout once the KL from the policy that generated it exceeds this,"
        " in nats per token",
        None,
        gt=0,
    )
    allow_truncated_sampling: bool = setting(
        "allow top_k, top_p, min_p or a repetition penalty, which make rollouts differ from the policy that is trained",
        False,
    )
    missing_eos_penalty: float | None = setting(
        "penalty subtracted from the score of a completion that has no end token", None, gt=0
    )
    score_clip: float | None = setting("clip the scores to ± this; null does not clip", None, gt=0)
    score_scaling: ScoreScaling = setting(
        "scaling of the scores: none, or running: subtract the running mean, divide by the running standard deviation",
        ScoreScaling.none,
    )
    keep_rollouts: int = setting("number of completions of each update that are written to rollouts.jsonl", 4, ge=0)
    show_every: int = setting("number of updates between displays of two completions; 0 shows none", 10, ge=0)
    health: HealthPolicy = setting("what to do on signs of divergence: off, warn or stop", HealthPolicy.warn)
    max_kl: float = setting("KL per completion, in nats, above which the policy counts as diverged", 100.0, gt=0)


@dataclass
class ValueConfig:
    model: ValueModel = setting(
        "backbone of the value head: the policy's own (shared), the policy's under a second LoRA adapter "
        "(adapter), or a separate one (own)",
        ValueModel.shared,
    )
    start: str | None = setting(
        "run whose value function to start from: a PPO run, or a reward run (for adapter and own); null "
        "starts with values of 0",
        None,
    )
    learning_rate: float | None = setting(
        "learning rate of the value function; null is train.learning_rate", None, gt=0
    )
    warmup_updates: int = setting("number of first updates that train the value function alone", 0, ge=0)
    detach: bool = setting(
        "stop the gradient of the value loss at the value head, so that it does not train the policy", False
    )


@dataclass
class PpoJob(SampledJob):
    stage: ClassVar[str] = "ppo"
    reward: list[Any] = setting(
        "rewards: a list of {function | classifier | model, weight, …}, whose weighted scores add up", []
    )
    data: PromptDataConfig = field(default_factory=PromptDataConfig)
    samples: int = setting(
        "number of prompts answered and scored before and after training, written to samples.jsonl", 5, ge=0
    )
    # The policy itself draws: at another temperature another policy does, and is trained as such.
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(do_sample=True, temperature=1.0, max_new_tokens=64)
    )
    ppo: PpoConfig = field(default_factory=PpoConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    train: dict[str, Any] = setting("training: arguments of transformers.TrainingArguments", {})


@dataclass
class CommandJob:
    """What the commands that look at a model have in common."""

    model: ModelConfig = field(default_factory=ModelConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)


@dataclass
class BatchedJob(CommandJob):
    """A command that scores rows or generates responses, several together."""

    seed: int = setting("seed of every random draw", 0, ge=0)
    batch_size: int = setting("number of rows scored, or responses generated, in one batch", 16, ge=1)


@dataclass
class PromptedJob(BatchedJob):
    """A command that answers the rows of --prompts."""

    format: str = setting(
        "format of the rows of --prompts: auto, a format's name, or module:function of your own", "auto"
    )
    columns: dict[str, Any] = setting("map from a field of the format to your column, for the rows of --prompts", {})


@dataclass
class GenerateJob(PromptedJob):
    num_samples: int = setting("number of responses to each prompt", 1, ge=1)
    deterministic_rows: bool = setting(
        "generate one response at a time, so that it is bit-identical whatever the other prompts are", False
    )
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass
class CompareJob(PromptedJob):
    logprobs: bool = setting(
        "show how the log-probability of each token of the first model's responses changes under the other models",
        False,
    )
    # The likeliest tokens are the same each time: two models, not two draws, are compared.
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(do_sample=False))


@dataclass
class ChatJob(CommandJob):
    seed: int = setting("seed of every random draw", 0, ge=0)
    system: str | None = setting("system prompt, for a chat template that has a place for one", None)
    # Answers vary as a person expects of a chat, without the tail of unlikely tokens.
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(do_sample=True, temperature=1.0, top_p=0.9))


@dataclass
class EvaluateJob(BatchedJob):
    num_prompts: int = setting("number of held-out prompts to answer; 0 measures the loss alone", 32, ge=0)
    num_samples: int = setting("number of responses to each prompt", 4, ge=1)
    precision: float | None = setting(
        "desired half-width of the 95 % interval of the reward, for which num_prompts and num_samples are suggested",
        None,
        gt=0,
    )
    beta: float = setting("β of the implicit reward β · (ln π − ln π_ref), measured on --pairs", 0.1, gt=0)
    data: DataConfig = field(default_factory=DataConfig)
    # The model's own distribution: expectations are over it.
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(do_sample=True, temperature=1.0))


@dataclass
class TasksJob(BatchedJob):
    limit: int | None = setting("maximum number of rows to take of each task; null takes all", None, ge=1)
    num_fewshot: int | None = setting(
        "number of few-shot examples before each row; null is the task's own number", None, ge=0
    )


@dataclass
class ScoreJob(BatchedJob):
    # A row that cannot be scored says so where its score would be.
    data: DataConfig = field(default_factory=lambda: DataConfig(max_dropped=1.0))


@dataclass
class MergeJob(CommandJob):
    max_difference: float | None = setting(
        "maximum change of a log-probability by the merge, in nats; null is 1e-4 in float32, 0.25 in "
        "bfloat16, 0.05 in float16",
        None,
        gt=0,
    )


@dataclass
class VerifyJob:
    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass
class NextJob(CommandJob):
    num_tokens: int = setting("number of most likely tokens to show", 12, ge=1)
    temperatures: list[float] = setting("temperatures to show one after the other, instead of sampling.temperature", [])
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
