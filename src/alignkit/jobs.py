"""The jobs: what each stage and command can be told, put together from the sections of `config.py`.

A stage's own default is a `default_factory` here, with its reason. `train` and `lora` are open on purpose: they are
keyword arguments of the trainer's and PEFT's own classes, checked against those by `alignkit.upstream`, never mirrored.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, ClassVar, Self

from alignkit.choices import Resume
from alignkit.config import (
    DataConfig,
    EngineConfig,
    FormsConfig,
    ModelConfig,
    PpoConfig,
    PromptDataConfig,
    ReferenceConfig,
    SamplingConfig,
    TemplateConfig,
    TrainingEngineConfig,
    ValueConfig,
    setting,
)
from alignkit.errors import as_yaml, did_you_mean
from alignkit.estimators import settle
from alignkit.home import expand_home

_MOST_A_PASS = 8  # completions in a forward and backward pass of PPO, where it is not given


@dataclass
class StageJob:
    """What the four stages have in common.

    `train` is laid over the stage's own choices among upstream's arguments, so that a job built in Python trains as
    the command does.
    """

    stage: ClassVar[str]
    name: str = setting("name of the run, which is written to runs/STAGE/NAME", "default")
    seed: int = setting("seed of every random draw", 0, ge=0)
    resume: Any = setting(
        "true continues an unfinished run from its newest intact checkpoint; auto does so where there is one, starts"
        " where there is none and leaves a finished run alone; force continues with changed settings or data, and names"
        " each change",
        False,
    )
    overwrite: bool = setting("delete an existing run of the same name first", False)
    early_stopping: int | None = setting(
        "stop after this many evaluations without improvement of the held-out loss (in PPO: score), and keep the best"
        " checkpoint; null never stops",
        None,
        ge=1,
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    lora: dict[str, Any] = setting(
        "LoRA: arguments of peft.LoraConfig for a new adapter; empty trains the adapter of a model that has one, else"
        " all weights",
        {},
    )
    train: dict[str, Any] = setting("arguments of the trainer", {})

    def __post_init__(self) -> None:
        self.train = {**stage_arguments(self.stage), **self.train}

    def settled(self) -> Self:
        """Return the job with what its other settings decide filled in: as it runs, and as it is recorded."""
        return self


@dataclass
class PolicyJob(StageJob):
    """A stage that trains a policy, which answers a few prompts before and after."""

    samples: int = setting("number of prompts answered before and after training, written to samples.jsonl", 3, ge=0)
    # Samples are a glance before and after, not an evaluation.
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_new_tokens=128))


@dataclass
class SftJob(PolicyJob):
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
        "subtract the margin column of the pairs, if there is one, from the score difference in the Bradley-Terry loss",
        True,
    )
    train: dict[str, Any] = setting(
        "training: arguments of trl.RewardConfig, which extends transformers.TrainingArguments", {}
    )


@dataclass
class DpoJob(PolicyJob):
    stage: ClassVar[str] = "dpo"
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    train: dict[str, Any] = setting(
        "training: arguments of trl.DPOConfig, which extends transformers.TrainingArguments", {}
    )


@dataclass
class PpoJob(PolicyJob):
    stage: ClassVar[str] = "ppo"
    reward: list[Any] = setting(
        "rewards: a list of sources, each with a function, classifier or model and its weight; the reward is their "
        "weighted sum (docs/ppo.md lists the keys of a source)",
        [],
    )
    data: PromptDataConfig = field(default_factory=PromptDataConfig)
    samples: int = setting(
        "number of prompts answered and scored before and after training, written to samples.jsonl", 5, ge=0
    )
    # The policy itself draws: at another temperature another policy does, and is trained as such.
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(do_sample=True, temperature=1.0, max_new_tokens=64)
    )
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    engine: TrainingEngineConfig = field(default_factory=TrainingEngineConfig)
    train: dict[str, Any] = setting("training: arguments of transformers.TrainingArguments", {})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train.get("per_device_train_batch_size") is None:
            self.train["per_device_train_batch_size"] = completions_a_pass(self.ppo)

    def settled(self) -> Self:
        return dataclasses.replace(self, ppo=settle(self.ppo))


def completions_a_pass(ppo: PpoConfig) -> int:
    """Return the most completions, up to 8, of which whole forward passes make a process's part of a minibatch."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    part = ppo.num_prompts * ppo.num_generations // max(1, ppo.num_mini_batches * processes)
    return max(size for size in range(1, _MOST_A_PASS + 1) if part % size == 0)


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
    data: FormsConfig = field(default_factory=FormsConfig)


@dataclass
class GenerateJob(PromptedJob):
    num_samples: int = setting("number of responses to each prompt", 1, ge=1)
    deterministic_rows: bool = setting(
        "generate one response at a time, so that it is bit-identical whatever the other prompts are", False
    )
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)


@dataclass
class CompareJob(PromptedJob):
    logprobs: bool = setting(
        "show how the log-probability of each token of the first model's responses changes under the other models",
        False,
    )
    # The likeliest tokens are the same each time: two models, not two draws, are compared.
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(do_sample=False))
    engine: EngineConfig = field(default_factory=EngineConfig)


@dataclass
class ChatJob(CommandJob):
    seed: int = setting("seed of every random draw", 0, ge=0)
    system: str | None = setting("system prompt, for a chat template that has a place for one", None)
    data: FormsConfig = field(default_factory=FormsConfig)
    # Answers vary as a person expects of a chat, without the tail of unlikely tokens.
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(do_sample=True, temperature=1.0, top_p=0.9))


@dataclass
class EvaluateJob(BatchedJob):
    num_prompts: int = setting("number of held-out prompts to answer; 0 measures the loss alone", 32, ge=0)
    num_samples: int = setting("number of responses to each prompt", 4, ge=1)
    precision: float | None = setting(
        "desired half-width of the 95 % interval of the reward; the output suggests num_prompts and num_samples for it",
        None,
        gt=0,
    )
    beta: float = setting("β of DPO's implicit reward β · (ln π − ln π_ref), which scores --pairs", 0.1, gt=0)
    data: PromptDataConfig = field(default_factory=PromptDataConfig)
    # The model's own distribution: expectations are over it.
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(do_sample=True, temperature=1.0))
    engine: EngineConfig = field(default_factory=EngineConfig)


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
        "maximum change of a log-probability by the merge, in nats, above which the merge is refused; null is 1e-4 in"
        " float32, 0.25 in bfloat16, 0.05 in float16",
        None,
        gt=0,
    )


@dataclass
class VerifyJob:
    model: ModelConfig = field(default_factory=ModelConfig)
    max_difference: float | None = setting(
        "maximum mean difference between the log-probabilities of --server and those of the run, in nats per token;"
        " null is 0.05",
        None,
        gt=0,
    )


@dataclass
class NextJob(CommandJob):
    num_tokens: int = setting("number of most likely tokens to show", 12, ge=1)
    temperatures: list[float] = setting("temperatures to show one after the other, instead of sampling.temperature", [])
    # Greedy would leave one bar.
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(do_sample=True, temperature=1.0))


_PATHS = ("name", "model.name", "template.file", "reference.name", "value.start")
_REWARDS = ("function", "model", "classifier")
# What begins with a file or a folder, alone, in a list or in a mapping.
_HOME = {*_PATHS[1:], "data.path", "data.eval_path", "data.format", "format", "reward"}

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


def with_home(job: Any) -> Any:
    """A job whose paths begin with the home folder where `~` was typed; sections are copied, `job` stays as it is."""

    def expanded(value: Any) -> Any:
        if isinstance(value, str):
            return expand_home(value)
        if isinstance(value, list):
            return [expanded(item) for item in value]
        return {key: expanded(item) for key, item in value.items()} if isinstance(value, dict) else value

    def in_section(section: Any, above: str) -> Any:
        changed = {}
        for item in dataclasses.fields(section):
            value, key = getattr(section, item.name), f"{above}{item.name}"
            if dataclasses.is_dataclass(value):
                changed[item.name] = in_section(value, f"{key}.")
            elif key in _HOME:
                changed[item.name] = expanded(value)
        return dataclasses.replace(section, **changed)

    return in_section(job, "")


def path_problems(job: Any) -> list[str]:
    """List the names of files and folders that no file system takes, one line each; empty where all is well."""
    named = {key: value for key, _, value in settings(job) if key in _PATHS}
    for number, reward in enumerate(getattr(job, "reward", [])):
        given = reward if isinstance(reward, dict) else {}
        named |= {f"reward[{number}].{key}": given[key] for key in _REWARDS if key in given}
    found = {key: name_problem(value) for key, value in named.items() if isinstance(value, str)}
    return [f"{key}={named[key]!r:.60}: {problem}" for key, problem in found.items() if problem]


def name_problem(name: str) -> str:
    """Say what is wrong with the name of a file or folder, of whatever kind; empty where nothing is."""
    if "\0" in name:
        return "a name of a file cannot hold a null character"
    longest = max(name.split("/"), key=len)
    return f"a name of {len(longest):,} characters is too long for a file" if len(longest.encode()) > 255 else ""


def out_of_bounds(job: Any) -> list[str]:
    """One line for each setting outside its bounds; empty where all is well."""
    problems = []
    chosen = str(getattr(job, "resume", False)).lower()
    if chosen not in [*Resume]:
        problems.append(f"resume is {chosen}: choose {', '.join(Resume)}{did_you_mean(chosen, [*Resume])}")
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
    return [f"{name} is {as_yaml(value)}: it must be {kind}, or {{start: …, end: …}} for one that moves"]


def _outside(name: str, value: float, metadata: Mapping[str, Any]) -> list[str]:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = {k: v for k, v in metadata.items() if k in words}
    held = {"ge": value >= bounds.get("ge", value), "gt": "gt" not in bounds or value > bounds["gt"]}
    held |= {"le": value <= bounds.get("le", value), "lt": "lt" not in bounds or value < bounds["lt"]}
    if all(held.values()):
        return []
    wanted = " and ".join(f"{words[k]} {v:g}" for k, v in bounds.items())
    percent = bounds.get("le", bounds.get("lt")) == 1 and 5 <= value <= 100
    meant = f"; {value:g} % is {value / 100:g}" if percent else ""
    return [f"{name} is {value}: it must be {wanted}{meant}"]
