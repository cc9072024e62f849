"""Signs of divergence, in words: what was seen and what to try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_ENTROPY_LEFT = 0.1  # of what there was at the start
_FULL_LENGTH = 0.95  # of max_new_tokens
_UPDATES = 3  # in a row without anything to learn
_EVALS = 3  # held-out scores in a row that fall while the training score rises


@dataclass
class HealthMonitor:
    """Watches the metrics of updates and evaluations for signs of divergence.

    Attributes:
        max_kl: nats per completion that are too far from the reference; None where there is none.
        max_new_tokens: the longest a completion can be.
        compares_group: completions are compared with those of their prompt, not with all others.
        reference: what the KL is to, in words.
        max_mismatch: nats per token between trainer and engine that are too far; None without an engine.
        first: entropy and length of the first update.
        evals: (training score, held-out score) at each evaluation.
        reported: names of signs that were reported already; each is reported once.
    """

    max_kl: float | None
    max_new_tokens: int
    compares_group: bool = False
    reference: str = "its reference"
    max_mismatch: float | None = None
    first: dict[str, float] = field(default_factory=dict)
    evals: list[tuple[float, float]] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)
    num_alike: int = 0  # updates in a row whose rewards had nothing to teach
    _last_score: float | None = None  # of training: none before the first update

    def check_update(self, metrics: Mapping[str, float]) -> list[str]:
        """Find new signs in the metrics of an update, one line each."""
        entropy, length = metrics["objective/entropy"], metrics["rollout/length"]
        self._last_score = metrics["objective/score"]
        if not self.first:
            self.first = {"entropy": entropy, "length": length}
        warnings = {}
        are_alike = metrics["group/flat_fraction"] == 1 if self.compares_group else metrics["objective/score_std"] == 0
        self.num_alike = self.num_alike + 1 if are_alike else 0
        if self.num_alike >= _UPDATES:
            alike = "the completions of each prompt" if self.compares_group else "all completions"
            warnings["signal"] = (
                f"in {_UPDATES} updates in a row {alike} had one reward: there is nothing to learn; if the task is not "
                "solved, take a reward that tells completions apart, prompts neither too easy nor too hard, more "
                "ppo.num_generations, or a higher sampling.temperature"
            )
        if self.max_kl is not None and (kl := metrics["objective/kl"]) > self.max_kl:
            warnings["kl"] = (
                f"the KL is {kl:.3g} nats a completion, above ppo.max_kl={self.max_kl:g}: the policy has moved far "
                f"from {self.reference}; raise ppo.kl_coef, lower train.learning_rate, or set ppo.kl_target"
            )
        if entropy < _ENTROPY_LEFT * self.first["entropy"]:
            warnings["entropy"] = (
                f"the entropy fell from {self.first['entropy']:.3g} to {entropy:.3g} nats a token: the policy says "
                "nearly the same thing every time; raise ppo.kl_coef or ppo.entropy_coef, or lower train.learning_rate"
            )
        if length > _FULL_LENGTH * self.max_new_tokens and self.first["length"] < length / 2:
            warnings["length"] = (
                f"completions grew from {self.first['length']:.3g} to {length:.3g} tokens and reach "
                f"sampling.max_new_tokens={self.max_new_tokens}: set ppo.missing_eos_penalty, or check whether the "
                "reward favors length"
            )
        if self.max_mismatch is not None and (apart := metrics["engine/mismatch"]) > self.max_mismatch:
            warnings["mismatch"] = (
                f"the log-probabilities of the servers are {apart:.3g} nats a token from the trainer's, above "
                f"engine.max_mismatch={self.max_mismatch:g}: the policy learns from what another one drew; serve it in "
                "the dtype it is trained in, or say engine.correction=truncated"
            )
        return self._new(warnings)

    def check_evaluation(self, held_out_score: float) -> list[str]:
        """Find a new sign in a held-out score, one line."""
        if self._last_score is None:
            return []
        self.evals = [*self.evals, (self._last_score, held_out_score)][-_EVALS:]
        trained, held_out = zip(*self.evals, strict=True)
        diverge = len(self.evals) == _EVALS and all(
            trained[i] < trained[i + 1] and held_out[i] > held_out[i + 1] for i in range(_EVALS - 1)
        )
        line = (
            f"the training score rose to {trained[-1]:.3g} while the held-out score fell to {held_out[-1]:.3g}, "
            f"over {_EVALS} evaluations: the policy overfits its prompts; add prompts, or stop earlier"
        )
        return self._new({"held_out": line} if diverge else {})

    def _new(self, warnings: Mapping[str, str]) -> list[str]:
        new = {name: line for name, line in warnings.items() if name not in self.reported}
        self.reported += list(new)
        return list(new.values())

    def state_dict(self) -> dict[str, Any]:
        # "told": what checkpoints have called it from the start
        state = {"first": self.first, "evals": self.evals, "told": self.reported, "last_score": self._last_score}
        return state | {"num_alike": self.num_alike}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first, self.reported, self._last_score = dict(state["first"]), list(state["told"]), state["last_score"]
        self.evals = [(trained, held_out) for trained, held_out in state["evals"]]
        self.num_alike = state.get("num_alike", 0)  # which checkpoints did not have from the start
