"""Signs of a training gone wrong, in words: what was seen and what to try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_ENTROPY_LEFT = 0.1  # of what there was at the start
_FULL_LENGTH = 0.95  # of max_new_tokens
_EVALS = 3  # held-out scores in a row that fall while the training score rises


@dataclass
class Health:
    """Looks at the metrics of each update.

    Attributes:
        max_kl: nats per completion that are too far from the reference.
        max_new_tokens: the longest a completion can be.
        first: entropy and length of the first update.
        evals: (training score, held-out score) at each evaluation.
        told: signs that were told already; each is told once.
    """

    max_kl: float
    max_new_tokens: int
    first: dict[str, float] = field(default_factory=dict)
    evals: list[tuple[float, float]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    _last_score: float | None = None  # of training: none before the first update

    def look(self, metrics: Mapping[str, float]) -> list[str]:
        """New signs in the metrics of an update, one line each."""
        kl, entropy, length = metrics["objective/kl"], metrics["objective/entropy"], metrics["rollout/length"]
        self._last_score = metrics["objective/score"]
        if not self.first:
            self.first = {"entropy": entropy, "length": length}
        signs = {}
        if kl > self.max_kl:
            signs["kl"] = (
                f"the KL is {kl:.3g} nats a completion, beyond ppo.max_kl={self.max_kl:g}: the policy has left its "
                "reference; raise ppo.kl_coef, lower train.learning_rate, or set ppo.kl_target"
            )
        if entropy < _ENTROPY_LEFT * self.first["entropy"]:
            signs["entropy"] = (
                f"the entropy fell from {self.first['entropy']:.3g} to {entropy:.3g} nats a token: the policy says "
                "nearly the same always; raise ppo.kl_coef or ppo.entropy_coef, or lower train.learning_rate"
            )
        if length > _FULL_LENGTH * self.max_new_tokens and self.first["length"] < length / 2:
            signs["length"] = (
                f"completions grew from {self.first['length']:.3g} to {length:.3g} tokens and run into "
                f"sampling.max_new_tokens={self.max_new_tokens}: set ppo.missing_eos_penalty, or look at what the "
                "reward pays for"
            )
        return self._new(signs)

    def look_at_evaluation(self, held_out_score: float) -> list[str]:
        """New signs in a held-out score."""
        if self._last_score is None:
            return []
        self.evals = [*self.evals, (self._last_score, held_out_score)][-_EVALS:]
        trained, held_out = zip(*self.evals, strict=True)
        parting = len(self.evals) == _EVALS and all(
            trained[i] < trained[i + 1] and held_out[i] > held_out[i + 1] for i in range(_EVALS - 1)
        )
        line = (
            f"the training score rose to {trained[-1]:.3g} while the held-out score fell to {held_out[-1]:.3g}, "
            f"{_EVALS} evaluations in a row: the policy learns its prompts by heart; add prompts, or stop earlier"
        )
        return self._new({"held_out": line} if parting else {})

    def _new(self, signs: Mapping[str, str]) -> list[str]:
        new = {name: line for name, line in signs.items() if name not in self.told}
        self.told += list(new)
        return list(new.values())

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "evals": self.evals, "told": self.told, "last_score": self._last_score}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first, self.told, self._last_score = dict(state["first"]), list(state["told"]), state["last_score"]
        self.evals = [(trained, held_out) for trained, held_out in state["evals"]]
