"""What memory an update of PPO takes: its rollout, and the passes that learn from it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from alignkit.choices import EngineName, ValueModel
from alignkit.config import ModelConfig
from alignkit.data.sets.prompts import Prompt
from alignkit.estimators import estimator_of, needs_reference
from alignkit.jobs import PpoJob
from alignkit.models.adapters import Adapters
from alignkit.models.load import weights_dtype
from alignkit.models.reference import reference_section
from alignkit.models.skeleton import architecture_file, skeleton
from alignkit.models.source import ADAPTER_WEIGHTS, ModelSource, weight_shapes
from alignkit.planning.passes import has_plain_head, log_probs, longest, model_inputs, with_places, without_idle
from alignkit.planning.rehearsal import Batch, Models, Rehearsal
from alignkit.planning.unfilled import unfilled_base, with_adapter
from alignkit.ppo.reference import REF
from alignkit.ppo.value import VALUE_ADAPTER, ValueHead, backbone_of
from alignkit.rewards.backbone import Backbone, why_not_shared
from alignkit.rewards.source import RewardSource, parse_rewards
from alignkit.stages.planned import built_arguments
from alignkit.stages.ppo.arguments import build_ppo_arguments
from alignkit.stages.ppo.check import check_job
from alignkit.stages.ppo.data import prepare
from alignkit.training.lm_head import lm_head


def rehearsal(job: PpoJob, *, processes: int) -> Rehearsal:
    """Read the prompts, and say how completions are made and learned from."""
    check_job(job)
    job = job.settled()
    prepared = prepare(job)
    config, prompts = skeleton(job.model).config, prepared.data.train
    build = partial(build_ppo_arguments, job, record={"train": job.train}, held_out=bool(prepared.data.held_out))
    args = built_arguments(build)
    is_plain = has_plain_head(config, trust_remote_code=job.model.trust_remote_code)
    num_together = min(job.ppo.generation_batch_size, -(-job.ppo.num_prompts * job.ppo.num_generations // processes))

    def loss(models: Models, batch: Batch) -> Tensor:
        temperature = job.sampling.temperature if isinstance(job.sampling.temperature, float) else 1.0
        found_N, states_NH = log_probs(models.trained, batch, is_plain=is_plain, temperature=temperature)
        total = found_N.mean()
        return total if models.value is None else total + models.value(models.trained, batch, states_NH).mean()

    def rollout(models: Models, device: torch.device) -> Any:
        length = len(prompts[longest(_lengths(prompts), 1)[0]].ids) + job.sampling.max_new_tokens
        ids = torch.zeros((num_together, length), dtype=torch.long, device=device)
        policy: Any = models.trained.eval()
        return policy(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    return Rehearsal(
        stage="ppo",
        args=args,
        architecture=architecture_file(job.model),
        model_type=config.model_type,
        build=partial(_models, job),
        batch=lambda size: _longest_rows(prompts, size, max_new_tokens=job.sampling.max_new_tokens),
        loss=loss,
        rollout=rollout if job.engine.name is EngineName.local else None,
        micro_batches=_passes_of_a_minibatch(job, args, processes),
        facts=_facts(job, prompts),
    )


def _lengths(prompts: list[Prompt]) -> list[int]:
    return [len(prompt.ids) for prompt in prompts]


def _passes_of_a_minibatch(job: PpoJob, args: Any, processes: int) -> int:
    num = job.ppo.num_prompts * job.ppo.num_generations
    return max(1, num // int(job.ppo.num_mini_batches * args.per_device_train_batch_size * processes))


def _facts(job: PpoJob, prompts: list[Prompt]) -> Mapping[str, Any]:
    ppo = job.ppo
    num, a_rollout = len(prompts), ppo.num_prompts * ppo.num_generations
    mean_prompt = sum(_lengths(prompts)) / num
    return {
        "rows": num,
        "tokens": sum(_lengths(prompts)),
        "steps_per_epoch": max(1, -(-num // ppo.num_prompts)),
        "steps": ppo.num_updates,
        "epochs": ppo.num_updates * ppo.num_prompts / num,
        "optimizer_steps": ppo.num_updates * ppo.num_ppo_epochs * ppo.num_mini_batches,
        "tokens_per_rollout": round(a_rollout * (mean_prompt + job.sampling.max_new_tokens)),
    }


def _longest_rows(prompts: list[Prompt], size: int, *, max_new_tokens: int) -> Batch:
    """The longest prompts, each with a completion that never ends."""
    lengths = _lengths(prompts)
    chosen = [lengths[i] for i in longest(lengths, size)]
    width = max(chosen)
    starts_B1 = torch.tensor([width - length for length in chosen])[:, None]
    attention_BL = (torch.arange(width + max_new_tokens) >= starts_B1).long()
    labels_BL = torch.full(attention_BL.shape, -100)
    labels_BL[:, width - 1 : -1] = 0
    batch = {
        "input_ids": torch.zeros_like(attention_BL),
        "attention_mask": attention_BL,
        "position_ids": (attention_BL.cumsum(-1) - 1).clamp(min=0),
    }
    return with_places(without_idle(batch), labels_BL)


class _Value(nn.Module):
    """A value function as `ppo/value.py` has it, of weights that nothing was written into."""

    def __init__(self, hidden_size: int, *, backbone: Any = None, adapters: Adapters | None = None) -> None:
        super().__init__()
        self.head, self.backbone, self.adapters = ValueHead(hidden_size), backbone, adapters

    def forward(self, policy: Any, batch: Batch, states_NH: Tensor) -> Tensor:
        """Compute a value at each place, [N]."""
        values_N: Tensor
        if self.adapters is not None:
            with self.adapters.computing(VALUE_ADAPTER):
                states_NH = _states(backbone_of(policy), batch)
        elif self.backbone is not None:
            states_NH = _states(self.backbone, batch)
        values_N = self.head(states_NH)
        return values_N

    def gradient_checkpointing_enable(self, **how: Any) -> None:
        if self.backbone is not None:
            self.backbone.gradient_checkpointing_enable(**how)


def _states(backbone: Any, batch: Batch) -> Tensor:
    states_NH: Tensor = backbone(**model_inputs(batch)).last_hidden_state.flatten(0, 1)[batch["places"]]
    return states_NH


def _models(job: PpoJob) -> Models:
    source = ModelSource.of(job.model)
    trains = not (job.lora or source.is_adapter)
    model = with_adapter(unfilled_base(job.model, trains=trains), job.model, job.lora)
    adapters = Adapters(model) if isinstance(model, PeftModel) else None
    value = _value(job, model, adapters) if estimator_of(job.ppo).has_critic else None
    reference = _reference(job, adapters, trains=trains) if needs_reference(job.ppo) else None
    backbone = None if adapters is None else Backbone(adapters, source.base)
    rewards = [_reward(one, job.model, backbone) for one in parse_rewards(job.reward)]
    return Models(model, lm_head(model), value, reference, [reward for reward in rewards if reward is not None])


def _value(job: PpoJob, model: Any, adapters: Adapters | None) -> _Value:
    hidden_size = model.config.get_text_config().hidden_size
    backbone = None
    if job.value.model is ValueModel.own:
        backbone = backbone_of(unfilled_base(job.model, trains=True)).requires_grad_(True)
    if job.value.model is ValueModel.adapter:
        assert adapters is not None
        with torch.device("meta"):
            adapters.copy(VALUE_ADAPTER, trains=True)
    with torch.device("meta"):
        has_own_adapter = job.value.model is ValueModel.adapter
        return _Value(hidden_size, backbone=backbone, adapters=adapters if has_own_adapter else None)


def _reference(job: PpoJob, adapters: Adapters | None, *, trains: bool) -> Any:
    """The reference's own weights; None where it is the policy's backbone, with an adapter or without."""
    name, is_continued = job.reference.name, adapters is not None and not job.lora
    if name is None and adapters is not None:
        if is_continued:
            with torch.device("meta"):
                adapters.copy(REF, trains=False)
        return None
    section = job.model if name is None else reference_section(name, job.model)
    source = ModelSource.of(section)
    if adapters is not None and Backbone(adapters, ModelSource.of(job.model).base).is_base_of(source):
        if source.is_adapter:
            with torch.device("meta"):
                adapters.copy(REF, trains=False)
        return None
    return unfilled_base(section, trains=trains or is_continued).requires_grad_(False)


class _Weights(nn.Module):
    """Weights of which only the shapes are known."""

    def __init__(self, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
        super().__init__()
        made = (torch.zeros(shape, dtype=dtype, device="meta") for shape in shapes)
        self.kept = nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in made)


def _reward(source: RewardSource, model: ModelConfig, backbone: Backbone | None) -> Any:
    """What a reward keeps in memory; None for a function."""
    if source.kind == "function":
        return None
    if source.kind == "classifier":
        with torch.device("meta"):
            built = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(source.name))
        return built.requires_grad_(False)
    run = ModelSource.of(ModelConfig(source.name, dtype=model.dtype, attn_implementation=model.attn_implementation))
    assert run.folder is not None
    dtype = weights_dtype(run.config, trainable=False)
    adapter = list(weight_shapes(run.folder / ADAPTER_WEIGHTS).values()) if run.is_adapter else []
    if adapter and backbone is not None and why_not_shared(run, backbone) is None:
        return _Weights(adapter, torch.float32)
    if run.base.folder is None:
        return unfilled_base(run.base.config, trains=False).requires_grad_(False)
    files = run.base.folder.glob("model*.safetensors")
    base = [shape for file in files for shape in weight_shapes(file).values()]
    return nn.ModuleList([_Weights(base, dtype), _Weights(adapter, torch.float32)])
