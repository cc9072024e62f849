"""The words that settings choose from."""

from __future__ import annotations

from enum import StrEnum


# Members are spelled as they are written in YAML, because OmegaConf matches an enum's names.
class Init(StrEnum):
    pretrained = "pretrained"
    random = "random"


class Resume(StrEnum):
    """What to do about a run that is there: its YAML booleans are values of `resume`, too."""

    false = "false"
    true = "true"
    auto = "auto"
    force = "force"


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Gather(StrEnum):
    once = "once"
    layers = "layers"


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


class ToolsForm(StrEnum):
    native = "native"
    system = "system"


class ReasoningForm(StrEnum):
    native = "native"
    inline = "inline"
    drop = "drop"


class EvalGroups(StrEnum):
    conversation = "conversation"
    prompt = "prompt"


class OnError(StrEnum):
    stop = "stop"
    skip = "skip"


class HealthPolicy(StrEnum):
    off = "off"
    warn = "warn"
    stop = "stop"


class Advantage(StrEnum):
    gae = "gae"
    grpo = "grpo"
    dr_grpo = "dr_grpo"
    rloo = "rloo"
    reinforce = "reinforce"
    reinforce_baseline = "reinforce_baseline"


class KlAs(StrEnum):
    reward = "reward"
    loss = "loss"
    loss_unbiased = "loss_unbiased"


class LossOver(StrEnum):
    tokens = "tokens"
    completions = "completions"
    constant = "constant"


class RatioOver(StrEnum):
    token = "token"
    completion = "completion"


class ScoreScaling(StrEnum):
    none = "none"
    running = "running"


class ValueModel(StrEnum):
    shared = "shared"
    adapter = "adapter"
    own = "own"


class EngineName(StrEnum):
    local = "local"
    vllm = "vllm"


class Correction(StrEnum):
    none = "none"
    truncated = "truncated"


class Batching(StrEnum):
    auto = "auto"
    padded = "padded"
    grouped = "grouped"
    packed = "packed"
