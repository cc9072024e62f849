"""A policy that FSDP2 shards over processes: calls outside of its forward pass, its files, its optimizer.

Each process holds its share of every weight, of the frozen ones too, and all processes gather those of a layer whenever
one of them passes through it. What follows does nothing to a policy that is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from alignkit.choices import Gather

_OUTSIDE = ("call", "logprobs", "reference_logprobs")  # methods of a policy that compute, beside `forward`


def is_sharded(module: nn.Module) -> bool:
    """Tell whether a process holds its share of the weights only."""
    return isinstance(module, FSDPModule)


def prepare_policy(policy: Any, accelerator: Any) -> None:
    """Settle, before accelerate shards a policy, in what precision each part of it computes, and that each is there.

    accelerate would round what a policy returns to half precision, log-probabilities and values, and its value head.
    Every process has loaded all weights: transformers does so whatever FSDP's RAM-efficient loading says, by which
    accelerate would send each weight to all processes again, and the value head of one.

    Args:
        policy: whole.
        accelerator: which reads FSDP's settings.
    """
    plugin = accelerator.state.fsdp_plugin
    plugin.cpu_ram_efficient_loading = False
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=plugin.mixed_precision_policy.param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    if hasattr(policy.value, "head"):
        fully_shard(policy.value.head)


def open_policy(policy: Any) -> None:
    """Let the methods of a policy that accelerate has sharded compute as `forward` does."""
    for name in _OUTSIDE:
        register_fsdp_forward_method(policy, name)
    # torch keeps those of the root whole after a pass, for a backward pass that scoring has none of: what looked at the
    # weights then, such as a checkpoint, would see tensors that no optimizer changes
    policy.set_reshard_after_forward(True, recurse=False)


@torch.no_grad()
def call_alone(policy: Any, function: Callable[[], Any], gather: Gather) -> Any:
    """Call a function that passes through the model as often as this process needs, which no other one knows.

    Every process must call this; nothing in it has a gradient.

    Args:
        policy: sharded or not.
        function: what samples from the policy's model, and scores by adapters on it.
        gather: where sharded, all weights before the call, or those of a layer at each of its passes.
    """
    if not is_sharded(policy):
        return function()
    held = _all_whole if gather is Gather.once else _in_step

    def called() -> Any:
        with held(policy):
            return function()

    return policy.call(called)


@contextmanager
def _all_whole(policy: Any) -> Iterator[None]:
    """Hold every weight of the policy's model whole: no pass waits for another process."""
    units = [module for module in policy.model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


@contextmanager
def _in_step(policy: Any) -> Iterator[None]:
    """Gather layer by layer; who is done before the others goes on with passes that nobody looks at."""
    backbone, device = policy.backbone, next(policy.parameters()).device

    def any_passes(passes: bool) -> bool:
        largest = torch.tensor(passes, dtype=torch.int, device=device)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return bool(largest)

    def announce(*_: Any) -> None:
        any_passes(True)

    def unshard(unit: Any, _: Any) -> None:
        # tensors of an inference would stay in the buffers that training gathers in
        with torch.inference_mode(False), torch.no_grad():
            unit.unshard()

    units = [module for module in policy.model.modules() if is_sharded(module)]
    hooks = [backbone.register_forward_pre_hook(announce)]
    hooks += [unit.register_forward_pre_hook(unshard, prepend=True) for unit in units]
    try:
        yield
        hooks.pop(0).remove()
        while any_passes(False):
            backbone(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()


def gather_weights(policy: Any, *, frozen: bool = False) -> dict[str, Tensor] | None:
    """Gather weights on the main process, by their names; None of a policy that is whole.

    Every process must call this; on the others there are none.

    Args:
        policy: sharded or not.
        frozen: those that do not train, too.
    """
    if not is_sharded(policy):
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=not frozen)
    found: dict[str, Any] = get_model_state_dict(policy, options=options)
    # torch leaves the other names of a weight in
    kept = {name for name, weight in policy.named_parameters() if frozen or weight.requires_grad}
    kept |= {name for name, _ in policy.named_buffers()}
    return {name: weight for name, weight in found.items() if name in kept}


def gather_named(module: nn.Module, part: str) -> dict[str, Tensor]:
    """Gather the weights that have this part in their names, in every process; every process must call this."""
    weights = {name: weight for name, weight in module.named_parameters() if part in name.split(".")}
    return {name: weight.full_tensor() if isinstance(weight, DTensor) else weight for name, weight in weights.items()}


def below(weights: dict[str, Tensor] | None, prefix: str) -> dict[str, Tensor] | None:
    """Return the weights whose names begin so, by the rest of their names."""
    if weights is None:
        return None
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def read_weights(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """Read a file of weights as a module holds its own: whole, or this process's share of each."""
    like = next(module.parameters())
    return {name: as_held(weight, like) for name, weight in load_file(path).items()}


def gather_optimizer(optimizer: Any, *, is_main_process: bool) -> dict[str, Any]:
    """Gather the state of an optimizer on the main process, as one of whole weights has it.

    Args:
        optimizer: of sharded weights; every process must call this.
        is_main_process: on the others the state is not to be used.
    """

    def whole(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        gathered = value.full_tensor()
        return gathered.cpu() if is_main_process else value

    saved = optimizer.state_dict()
    states = {index: {name: whole(value) for name, value in state.items()} for index, state in saved["state"].items()}
    return {**saved, "state": states}


def load_optimizer(optimizer: Any, saved: dict[str, Any]) -> None:
    """Give an optimizer the state that one of whole weights had."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, state in saved["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor) and name != "step" and value.numel() == weights[index].numel():
                state[name] = as_held(value.reshape(weights[index].shape), weights[index])
    optimizer.load_state_dict(saved)


def as_held(whole: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor, or this process's share of it where the other one is such a share."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
