"""The sections of a job: our settings, typed, each with its default, its help line and its bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from alignkit.choices import (
    Advantage,
    Batching,
    ControlTokens,
    Correction,
    Dtype,
    EngineName,
    EvalGroups,
    Gather,
    HealthPolicy,
    Init,
    KlAs,
    LossOver,
    Malformed,
    Overlength,
    Quantization,
    RatioOver,
    ReasoningForm,
    ScoreScaling,
    ToolsForm,
    TrainOn,
    ValueModel,
)

MAX_ROW_BYTES = 64 * 2**20

MISSING: Any = "???"  # a setting that must be given, as OmegaConf writes it


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
    name: str = setting(
        "model: a hub id, a model folder, or a run directory; of random weights, a folder with a tokenizer, or any name"
    )
    init: Init = setting(
        "initial weights: pretrained, or random in the architecture of model.config or of a folder's config.json",
        Init.pretrained,
    )
    dtype: Dtype = setting(
        "dtype of the weights; auto is float32 for weights that train, else bfloat16 where the device computes in it",
        Dtype.auto,
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
        "architecture of a randomly initialized model: model_type and its sizes, as in config.json; without "
        "model_type, laid over the config.json of the folder in model.name",
        {},
    )


@dataclass
class DataConfig:
    path: Any = setting(
        "data: a file, folder, glob or hub id, or a list of these or of {path, weight, format, columns, split, limit}; "
        "a weight of 2 uses each row twice, 0.5 half of the rows"
    )
    format: str = setting(
        "format of the rows: auto (detected from the columns), a format's name, or module:function of your own", "auto"
    )
    columns: dict[str, Any] = setting(
        "map from a field of the format, such as input, to your column or to a path into nested data, such as "
        "instances.0.input",
        {},
    )
    system: str | None = setting(
        "system message put in front of every row that has none; it stands in the place of the template's own default",
        None,
    )
    split: str | None = setting("split of a hub data set, such as train or train[:10%]; null is train", None)
    eval_path: Any = setting("held-out data, given like data.path, or as {name: path, …} for several sets", None)
    eval_fraction: float = setting("fraction of the rows of data.path to hold out for evaluation", 0.0, ge=0, lt=1)
    eval_groups: EvalGroups | None = setting(
        "rows that data.eval_fraction keeps on one side: those with the same system message and first user turn and "
        "windows over one dialog (conversation), or only those with the same prompt (prompt); null is conversation, "
        "and in a resumed run what the run began with",
        None,
    )
    limit: int | None = setting(
        "maximum number of rows to read from each of data.path and data.eval_path, all their sources together; null "
        "reads all",
        None,
        ge=1,
    )
    shuffle: bool = setting("shuffle the rows in every epoch", True)
    max_length: int | None = setting(
        "maximum number of tokens in a row; null is the model's number of positions, at most 2048", None, ge=1
    )
    overlength: Overlength = setting(
        "what to do with a row longer than data.max_length: drop it, cut the start of its prompt (keep_end) or the "
        "end of its response (keep_start)",
        Overlength.drop,
    )
    malformed: Malformed = setting(
        "what to do with a malformed row: stop the run, or drop the row and count it", Malformed.stop
    )
    max_dropped: float = setting(
        "maximum fraction of the rows that may be dropped; above it the run stops", 0.05, ge=0, le=1
    )
    max_row_bytes: int = setting(
        "maximum size of a row of a file, in bytes, unpacked; a longer one is malformed, and never held in memory",
        MAX_ROW_BYTES,
        ge=1,
    )
    train_on: TrainOn = setting(
        "tokens that carry loss: every response (assistant), the last response (last_turn), or everything",
        TrainOn.assistant,
    )
    tools: ToolsForm = setting(
        "form of tools, calls and results: the template's own (native), or written out as system, assistant and user "
        "text (system)",
        ToolsForm.native,
    )
    reasoning: ReasoningForm = setting(
        "form of an assistant's reasoning: the template's own (native), <think>…</think> before the answer (inline), "
        "or left out and counted (drop)",
        ReasoningForm.native,
    )
    train_reasoning: bool = setting(
        "the loss sees the reasoning of trained responses; false masks it, tags included (sft and dpo)", True
    )
    control_tokens: ControlTokens = setting(
        "special tokens typed in the text of a row: drop the row (refuse), or encode them as plain characters "
        "(neutralise)",
        ControlTokens.refuse,
    )
    batching: Batching = setting(
        "batch layout: padded, grouped by length, packed (rows end to end in lines, only lines are padded), or auto "
        "(packed if that is verified to be exact on the model, else grouped)",
        Batching.auto,
    )
    num_proc: int = setting(
        "number of processes that encode the rows; a set of fewer than 10,000 rows is encoded in one, which is faster",
        1,
        ge=1,
    )
    streaming: bool = setting(
        "read rows during training, for data larger than memory; shuffling is within a buffer of 10,000 rows", False
    )


@dataclass
class TemplateConfig:
    # native: a run directory keeps the template it was trained with in its tokenizer.
    name: str = setting("chat template: a shipped one, or native for the one in the model's tokenizer", "native")
    file: str | None = setting("Jinja chat template of your own, as a server takes it", None)
    kwargs: dict[str, Any] = setting(
        "arguments of the template, such as {enable_thinking: false}; a row's own chat_template_kwargs come on top", {}
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
        "penalty on tokens that have already occurred; 1 is none, 1.2 is strong", None, schedule=float, gt=0
    )
    max_new_tokens: int = setting("maximum length of a response, in tokens", 256, ge=1)
    min_new_tokens: int = setting("minimum length of a response, in tokens", 0, ge=0)
    stop: list[str] = setting("strings that end a response; it is cut before them", [])


@dataclass
class ReferenceConfig:
    name: str | None = setting("reference model; null is the policy at the start of training", None)
    keep: bool = setting(
        "cache the reference log-probabilities (in DPO alone): compute them once, before training, and keep them in "
        "runs/dpo/.reference for later runs",
        False,
    )


@dataclass
class PromptLength:
    min: int | None = setting(
        "for plain text: a text becomes a prompt of its first tokens, at least this many", None, ge=1
    )
    max: int | None = setting(
        "for plain text: a text becomes a prompt of its first tokens, at most this many; the number is drawn from the"
        " seed",
        None,
        ge=1,
    )


@dataclass
class FormsConfig:
    tools: ToolsForm | None = setting(
        "form of tools, calls and results in prompts: native, or system (written out as text); null is that of the "
        "training",
        None,
    )
    reasoning: ReasoningForm | None = setting(
        "form of the reasoning in earlier turns of prompts: native, inline or drop; null is that of the training", None
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
    gather: Gather | None = setting(
        "how weights that FSDP shards are gathered to generate completions: all of them once per rollout (once), or "
        "layer by layer for each token, slower and in less memory (layers); null is once",
        None,
    )
    # What is null here is filled in by the estimator (alignkit.estimators): it has a meaning beside some of them alone.
    advantage: Advantage = setting(
        "advantage estimator: gae (with a value function); without one grpo, dr_grpo, rloo, reinforce or "
        "reinforce_baseline (docs/ppo.md says which when)",
        Advantage.gae,
    )
    kl_as: KlAs | None = setting(
        "place of the KL penalty: subtracted from the reward of each token (reward), its k3 estimate added to the loss "
        "(loss), or k3 times the ratio of the policies, whose gradient has no bias (loss_unbiased); null is the "
        "estimator's",
        None,
    )
    loss_over: LossOver | None = setting(
        "average of the policy loss: over the tokens of the minibatch, over its completions (of each one's mean), or "
        "its sum divided by a constant, sampling.max_new_tokens × completions; null is the estimator's",
        None,
    )
    refill_flat_groups: int = setting(
        "number of times that further prompts are asked in place of those whose completions all have the same reward; "
        "0 keeps these",
        0,
        ge=0,
    )
    clip_range: float = setting("PPO clip range ε: the ratio π/π_old is clipped to [1−ε, 1+ε]", 0.2, gt=0)
    clip_range_high: float | None = setting(
        "upper clip range ε_high: the ratio π/π_old is clipped to [1−ε, 1+ε_high]; null is clip_range", None, gt=0
    )
    dual_clip: float | None = setting(
        "dual clip c: where the advantage A is negative, the clipped objective is at least c·A; null has no such bound",
        None,
        gt=1,
    )
    ratio_over: RatioOver = setting(
        "ratio that is clipped: of each token, or of the completion (the geometric mean over its tokens)",
        RatioOver.token,
    )
    clip_range_value: float | None = setting(
        "value clip range: a new value is clipped to ± this around the value of the rollout, inf does not clip; null "
        "is 0.2 beside a value function",
        None,
        gt=0,
    )
    vf_coef: float | None = setting("coefficient of the value loss; null is 0.1 beside a value function", None, ge=0)
    entropy_coef: float = setting("coefficient of the entropy bonus, which keeps the policy exploring", 0.0, ge=0)
    gamma: float | None = setting(
        "discount factor γ of later rewards; null is 1 where the estimator discounts", None, ge=0, le=1
    )
    lam: float | None = setting(
        "GAE λ: 0 is the one-step TD error, 1 the Monte Carlo return minus the value; null is 0.95 with gae",
        None,
        ge=0,
        le=1,
    )
    whiten_advantages: bool | None = setting(
        "whiten the advantages to mean 0 and variance 1 over the tokens of the rollout; null is the estimator's", None
    )
    kl_coef: float = setting("KL penalty coefficient β (per nat, against the reference policy)", 0.05, ge=0)
    kl_coef_end: float | None = setting("final kl_coef; annealed linearly; null keeps it constant", None, ge=0)
    kl_target: float | None = setting(
        "adaptive KL: target KL per completion, in nats, to which kl_coef is adapted; null does not adapt it",
        None,
        gt=0,
    )
    kl_horizon: int = setting(
        "adaptive KL: number of completions over which kl_coef adapts; fewer adapt it faster", 10_000, ge=1
    )
    target_kl: float | None = setting(
        "early stop of an update: skip the remaining passes over a rollout once the KL from the policy that generated"
        " it exceeds this, in nats per token; null never skips",
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
    overlong: dict[str, Any] = setting(
        "penalty on length, {from, to, penalty}: subtracted from the score, it grows linearly from 0 at `from` tokens "
        "to `penalty` at `to` tokens; empty has none",
        {},
    )
    mask_truncated: bool = setting(
        "leave completions that have no end token out of the loss; their scores count in their groups", False
    )
    score_clip: float | None = setting("clip the scores to ± this; null does not clip", None, gt=0)
    score_scaling: ScoreScaling = setting(
        "scaling of the scores: none, or running: subtract the running mean, divide by the running standard deviation",
        ScoreScaling.none,
    )
    keep_rollouts: int = setting("number of completions of each update that are written to rollouts.jsonl", 4, ge=0)
    show_every: int = setting("number of updates between displays of two completions; 0 shows none", 10, ge=0)
    health: HealthPolicy = setting(
        "what to do on signs of divergence (in KL, entropy, length, held-out score, or rewards that are all alike): "
        "off, warn or stop",
        HealthPolicy.warn,
    )
    max_kl: float | None = setting(
        "KL per completion, in nats, above which the policy counts as diverged; null is 100, beside a KL penalty",
        None,
        gt=0,
    )


@dataclass
class ValueConfig:
    model: ValueModel = setting(
        "backbone of the value head: the policy's own (shared), the policy's under a second LoRA adapter (adapter), "
        "or a separate one (own)",
        ValueModel.shared,
    )
    start: str | None = setting(
        "run whose value function to start from: a PPO run or, if value.model is adapter or own, a reward run; null "
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
class EngineConfig:
    name: EngineName = setting(
        "program that generates: this one (local), or running vLLM servers (vllm)", EngineName.local
    )
    servers: list[str] = setting("addresses of vLLM servers, such as [http://localhost:8000]", [])
    timeout: float = setting("maximum time that a server takes over a request, in seconds", 600.0, gt=0)


@dataclass
class TrainingEngineConfig(EngineConfig):
    """An engine whose completions are learned from."""

    max_mismatch: float = setting(
        "maximum mean difference between the log-probabilities of the trainer and those of the servers, in nats per "
        "token: above it a server is refused, and ppo.health tells of an update",
        0.02,
        gt=0,
    )
    correction: Correction = setting(
        "correction of the difference: none, or truncated importance weights, min(π/π_engine, engine.max_weight)",
        Correction.none,
    )
    max_weight: float | None = setting(
        "maximum importance weight of engine.correction=truncated; null is 2", None, gt=0
    )
