"""One optimizer step of a job, taken to see what memory it needs: on fake tensors, which have none, or on a device."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Trainer

from alignkit.errors import AlignkitError, ConfigError, ModelError
from alignkit.models.memory import is_out_of_memory
from alignkit.planning.live_memory import LiveMemory, bytes_of, tensors_of
from alignkit.planning.measured import watched_peak
from alignkit.planning.unfilled import allocate

Batch = dict[str, Tensor]


@dataclass
class Models:
    """What is in memory while a job trains.

    Attributes:
        trained: what takes gradients: the policy, its adapter inside it, or the reward model.
        head: its last module, which turns states into logits or scores.
        value: the value function, where it is not the policy's own states alone.
        reference: the reference, where it has weights of its own.
        rewards: reward models with weights of their own.
    """

    trained: nn.Module
    head: nn.Module
    value: nn.Module | None = None
    reference: nn.Module | None = None
    rewards: list[nn.Module] = field(default_factory=list)

    def all(self) -> list[nn.Module | None]:
        return [self.trained, self.value, self.reference, *self.rewards]

    def trained_weights(self) -> list[nn.Parameter]:
        weights = [w for module in (self.trained, self.value) if module is not None for w in module.parameters()]
        return [weight for weight in dict.fromkeys(weights) if weight.requires_grad]


@dataclass(frozen=True)
class Rehearsal:
    """How a stage takes a step, in parts.

    Attributes:
        stage: its name.
        args: upstream's arguments.
        architecture: the file that the architecture was read from.
        model_type: transformers' name of the architecture.
        build: the models, on the meta device.
        batch: the longest micro-batch of so many rows: the longest rows of the data together.
        loss: of models on a batch; it has the gradient of a real step.
        rollout: what a policy generates at a time: a pass that fills the cache of keys and values, which it returns.
        facts: what is known of the data: tokens, rows, steps.
        micro_batches: of an optimizer step.
    """

    stage: str
    args: Any
    architecture: str
    model_type: str
    build: Callable[[], Models]
    batch: Callable[[int], Batch]
    loss: Callable[[Models, Batch], Tensor]
    rollout: Callable[[Models, torch.device], Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    micro_batches: int = 1


@dataclass(frozen=True)
class Step:
    """Bytes of a micro-batch.

    Attributes:
        activations: kept from the forward pass for the backward pass, up to the head.
        logits: the most that comes on top of them up to the loss: logits, and passes without gradient.
        peak: the most at any time of a step, gradients included, on top of what is always there.
    """

    activations: int
    logits: int
    peak: int


class Rehearsed:
    """The models of a job and its optimizer, ready to take steps.

    Args:
        rehearsal: of the stage.
        device: None for fake tensors, else where the steps are really taken.
    """

    def __init__(self, rehearsal: Rehearsal, device: torch.device | None = None) -> None:
        self.rehearsal, self.args = rehearsal, rehearsal.args
        self.device = device or torch.device("cpu")
        self._fake = FakeTensorMode(allow_non_fake_inputs=True) if device is None else None
        models = rehearsal.build()
        with self._tracing("built"):
            self.models = models
            allocate((module for module in models.all() if module is not None), self.device)
            self.models.trained.train()
            self._checkpoint()
            self.optimizer = self._optimizer()
        self.weights = bytes_of(tensors_of(*self.models.all()))
        self.state = [t for kept in self.optimizer.state.values() for t in kept.values() if isinstance(t, Tensor)]
        self.gradients = bytes_of(self.models.trained_weights())
        self.optimizer_state = bytes_of(self.state)

    def step(self, batch_size: int) -> Step:
        """Take one optimizer step of as many micro-batches as change the peak: two, if there are several."""
        batch = self._placed(self.rehearsal.batch(batch_size))
        live = LiveMemory([*tensors_of(*self.models.all()), *self.state, *batch.values()])
        at_head: list[int] = []
        handle = self.models.head.register_forward_pre_hook(lambda *_: at_head.append(live.now))
        try:
            with self._tracing("run"), self._watched() as measured, live:
                with self._autocast():
                    loss = self.rehearsal.loss(self.models, batch)
                activations, forward_peak = at_head[0], live.peak
                torch.autograd.backward(loss)
                del loss
                if max(self.rehearsal.micro_batches, self.args.gradient_accumulation_steps) > 1:
                    with self._autocast():
                        loss = self.rehearsal.loss(self.models, batch)
                    torch.autograd.backward(loss)
                    del loss
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        finally:
            handle.remove()
        return Step(activations, forward_peak - activations, measured.bytes if measured is not None else live.peak)

    def rollout(self) -> tuple[int, int]:
        """Fill the cache of a rollout; its bytes, and the most at any time of it on top of what is always there."""
        assert self.rehearsal.rollout is not None
        live = LiveMemory(tensors_of(*self.models.all()) + self.state)
        with self._tracing("run"), live, torch.no_grad(), self._autocast():
            cache = self.rehearsal.rollout(self.models, self.device)
            kept = [t for layer in cache.layers for t in vars(layer).values() if isinstance(t, Tensor)]
        return bytes_of(kept), live.peak

    def _watched(self) -> Any:
        return nullcontext() if self._fake is not None else watched_peak(self.device)

    def _placed(self, batch: Batch) -> Batch:
        if self._fake is None:
            return {name: tensor.to(self.device) for name, tensor in batch.items()}
        return {name: self._fake.from_tensor(tensor) for name, tensor in batch.items()}

    def _autocast(self) -> Any:
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def _checkpoint(self) -> None:
        if not self.args.gradient_checkpointing:
            return
        how = {"use_reentrant": False, **(self.args.gradient_checkpointing_kwargs or {})}
        modules: list[Any] = [self.models.trained, self.models.value]
        for module in modules:
            if hasattr(module, "gradient_checkpointing_enable"):
                module.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
        if hasattr(modules[0], "peft_config"):
            modules[0].enable_input_require_grads()

    def _optimizer(self) -> torch.optim.Optimizer:
        """The optimizer with its state, which a first step makes."""
        optimizer_class, arguments = Trainer.get_optimizer_cls_and_kwargs(self.args)
        weights = self.models.trained_weights()
        optimizer: torch.optim.Optimizer = optimizer_class(weights, **arguments)
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        try:
            optimizer.step()
        # What optimizers raise over tensors without values: some look at one, some have no kernel for them.
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise ConfigError(
                f"train.optim={self.args.optim}: its state cannot be counted without memory; --measure takes a real "
                "step, and optim=adamw_torch_fused can be planned"
            ) from error
        optimizer.zero_grad(set_to_none=True)
        return optimizer

    @contextmanager
    def _tracing(self, what: str) -> Iterator[None]:
        """What an architecture does that fake tensors cannot, such as to look at a value, as one line."""
        try:
            with self._fake or nullcontext(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # said below, in a line
                yield
        except AlignkitError:
            raise
        except Exception as error:
            if self._fake is None:
                raise
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            raise ModelError(
                f"model.name: {self.rehearsal.model_type} cannot be {what} without memory "
                f"({type(error).__name__}: {reason[:120]}); --measure takes a real step"
            ) from error
