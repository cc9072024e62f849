"""The policy's completions by servers: its adapter handed over, what they drew, and how far that is from the policy."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from hashlib import blake2b
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.choices import Correction
from alignkit.config import SamplingConfig, TrainingEngineConfig
from alignkit.engine.handover import AdapterFolder, give_first
from alignkit.engine.kept import KeptCompletions
from alignkit.engine.mismatch import mismatch_metrics, truncated_weights
from alignkit.engine.probe import Probe, probe
from alignkit.engine.request import Request
from alignkit.engine.spread import Spread
from alignkit.engine.vllm_server import VllmServer
from alignkit.models.adapters import FIRST, Adapters
from alignkit.ppo.experience import RolloutTensors
from alignkit.ppo.rollout import Rollout
from alignkit.ppo.sharded import gather_named
from alignkit.sampling.generate import Completion
from alignkit.sampling.settings import sampling_at

SECONDS = "engine/seconds"  # the metric
MAX_WEIGHT = 2.0  # of engine.correction=truncated, where none is given


class Engine:
    """Servers that complete prompts with the policy as it is now.

    Args:
        spread: the servers.
        folder: where they read the adapter.
        kept: completions since the last checkpoint.
        section: `engine`.
    """

    def __init__(
        self, spread: Spread, folder: AdapterFolder, kept: KeptCompletions, section: TrainingEngineConfig
    ) -> None:
        self.spread, self.folder, self.kept, self.section = spread, folder, kept, section
        self.name = ""
        self.seconds, self.num_tokens = 0.0, 0
        self._before: dict[str, tuple[int, float]] = {}  # tokens and seconds of each server, as last reported

    def hand_over(self, adapters: Adapters, *, writes: bool, wait: Callable[[], None]) -> None:
        """Give the adapter to the servers, if its weights are others; every process must call this.

        Args:
            adapters: of the policy.
            writes: this process writes it.
            wait: for the other processes.

        Raises:
            TrainingError: no server takes it.
        """
        place = self._written(adapters, writes=writes, wait=wait)
        with _in_turn(is_first=writes, wait=wait):
            self.spread.load(self.name, place)
        if writes:
            self.folder.remove_others(self.name)

    def begin(self, adapters: Adapters, *, writes: bool, wait: Callable[[], None]) -> None:
        """Hand over the first adapter; arguments as in `hand_over`.

        Raises:
            ConfigError: one line for each server that does not take it.
        """
        place = self._written(adapters, writes=writes, wait=wait)
        with _in_turn(is_first=writes, wait=wait):
            give_first(self._servers, self.name, place)
            self.spread.load(self.name, place)

    def probe(self, model: Any, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> list[Probe]:
        """Hold what each server draws against the policy.

        Raises:
            ConfigError: one line for each server that does not draw from the policy.
        """
        ends = [sampling_at(sampling, 0.0), sampling_at(sampling, 1.0)]
        return probe(
            self._servers,
            model,
            prompts,
            ends if ends[0] != ends[1] else ends[:1],
            eos_ids=self.spread.eos_ids,
            num_tokens=self.spread.num_tokens,
            max_difference=self.section.max_mismatch,
        )

    @property
    def _servers(self) -> list[VllmServer]:
        return [member.server for member in self.spread.members]

    def _written(self, adapters: Adapters, *, writes: bool, wait: Callable[[], None]) -> Any:
        held = gather_named(adapters.model, FIRST)
        before, self.name = self.name, self.folder.name_of(adapters, held)
        if self.name != before:
            with _in_turn(is_first=writes, wait=wait):
                if writes:
                    self.folder.write(adapters.model, self.name, held)
        return (self.folder.folder / self.name).resolve()

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        requests: Sequence[tuple[int, int]],
        sampling: SamplingConfig,
        *,
        draw_stream: str,
    ) -> list[Completion]:
        """Complete prompts; those that these weights completed since the last checkpoint are taken as they were.

        Args:
            prompts: tokens of each completion's prompt.
            requests: (index of the prompt, generation) of each.
            sampling: without schedules.
            draw_stream: what the draws belong to.

        Raises:
            TrainingError: no server is left.
        """
        wanted = [
            Request(ids, f"{draw_stream} {index} {generation}", index)
            for ids, (index, generation) in zip(prompts, requests, strict=True)
        ]
        marks = [self._mark(request, sampling) for request in wanted]
        missing = [row for row, mark in enumerate(marks) if self.kept.get(mark) is None]
        started = time.perf_counter()
        completions = self.spread.complete([wanted[row] for row in missing], sampling)
        self.seconds += time.perf_counter() - started
        self.num_tokens += sum(len(completion.token_logprobs) for completion in completions)
        self.kept.add({marks[row]: completion for row, completion in zip(missing, completions, strict=True)})
        found = [self.kept.get(mark) for mark in marks]
        return [completion for completion in found if completion is not None]

    def _mark(self, request: Request, sampling: SamplingConfig) -> str:
        """What tells a completion from every other one of the run."""
        asked = [self.name, self.spread.seed, request.key, list(request.prompt_ids), asdict(sampling)]
        return blake2b(json.dumps(asked).encode(), digest_size=12).hexdigest()

    def compare(self, rollouts: Sequence[Rollout], tensors: RolloutTensors) -> tuple[RolloutTensors, dict[str, float]]:
        """Measure how far the policy of the trainer is from what the servers drew from, and correct it where asked for.

        The importance weight multiplies each token's term of the policy loss, which is to multiply its advantage.
        """
        engine_BT = _logprobs_of(rollouts, tensors.logprobs_BT)
        mask_BT = tensors.mask_BT
        measured = mismatch_metrics(tensors.logprobs_BT, engine_BT, mask_BT)
        if self.section.correction is Correction.truncated:
            most = self.section.max_weight or MAX_WEIGHT
            weights_BT = truncated_weights(tensors.logprobs_BT, engine_BT, mask_BT, max_weight=most)
            tensors = replace(tensors, advantages_BT=tensors.advantages_BT * weights_BT)
            num = max(int(mask_BT.sum()), 1)
            measured["engine/weight_mean"] = float(weights_BT[mask_BT].sum()) / num
            measured["engine/weight_cut"] = float((weights_BT[mask_BT] >= most).sum()) / num
        return tensors, measured

    def take_throughput(self) -> dict[str, float]:
        """Return what was measured since the last call, in seconds and in tokens per second, of each server too."""
        measured = {
            SECONDS: self.seconds,
            "engine/tokens_per_second": self.num_tokens / max(self.seconds, 1e-9),
        }
        for member in self.spread.members:
            url = member.server.url
            tokens, seconds = self._before.get(url, (0, 0.0))
            speed = (member.num_tokens - tokens) / max(member.seconds - seconds, 1e-9)
            measured[f"engine/{urlsplit(url).netloc}/tokens_per_second"] = speed
            self._before[url] = (member.num_tokens, member.seconds)
        self.seconds, self.num_tokens = 0.0, 0
        return measured

    def resumed(self) -> str:
        """Say what is no longer exact of a run that goes on."""
        return (
            f"{len(self.kept):,} completions that were drawn since the checkpoint are taken as they were; servers "
            "round as their load has it, so what they draw from now on need not be what an unbroken run would have got"
        )

    def close(self) -> None:
        """Leave the servers without the adapter."""
        self.spread.close()

    def remove(self) -> None:
        """Remove what was kept for a run that is over."""
        shutil.rmtree(self.folder.folder, ignore_errors=True)


class ForgetKept(TrainerCallback):
    """Forgets completions once a checkpoint has what was learned from them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.engine.kept.clear()


@contextmanager
def _in_turn(*, is_first: bool, wait: Callable[[], None]) -> Iterator[None]:
    """Let one process go through the block before the others do, and all go on once all have left it."""
    if not is_first:
        wait()
    try:
        yield
    finally:
        if is_first:
            wait()
        wait()


def _logprobs_of(rollouts: Sequence[Rollout], like_BT: Tensor) -> Tensor:
    """What the servers told of each token, as the trainer's are laid."""
    engine_BT = torch.zeros_like(like_BT)
    for row, rollout in enumerate(rollouts):
        engine_BT[row, : len(rollout.logprobs)] = torch.tensor(rollout.logprobs, device=like_BT.device)
    return engine_BT
