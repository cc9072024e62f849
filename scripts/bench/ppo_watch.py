"""What one side of the PPO bench does, update by update: completions, optimizer steps, forward passes, weights held."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

from side_by_side import Work


class Watch:
    """Counts the work of one side, update by update.

    Args:
        liked: ids that the reward likes.
        lengths: of the answers; fixed ones must have as many tokens on both sides.

    Attributes:
        works: of each finished update.
        liked: share of the answers' tokens that the reward likes, of each finished update.
        num_weights: in memory when training begins; those that share their storage count once.
    """

    def __init__(self, liked: Sequence[int], *, lengths: str) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook
        from transformers import TrainerCallback, trainer

        watch = self

        class Turn(TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                watch.num_weights = _num_weights()
                watch._begin()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                watch._conclude()

        self.works: list[Work] = []
        self.liked: list[float] = []
        self.num_weights = 0
        self._liked_ids, self._is_fixed = set(liked), lengths == "fixed"
        self._begin()
        register_optimizer_step_post_hook(lambda *_: self._count("optimizer steps", 1))
        trainer.DEFAULT_CALLBACKS.append(Turn)

    def add_completions(self, completions: Sequence[Sequence[int]]) -> None:
        """Take the ids of each completion of a rollout, its end included."""
        self._completions += completions

    def forward(self, policy: Any, ids_of: Callable[[Any], Any]) -> None:
        """Count the forward passes of a module class that have a gradient."""
        upstream = policy.forward

        def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
            import torch

            if torch.is_grad_enabled():
                ids_BL = ids_of(kwargs or args[0])
                self._count("forward passes", 1)
                self._count("completions in them", len(ids_BL))
                self._positions += ids_BL.numel()
            return upstream(module, *args, **kwargs)

        policy.forward = forward

    def _begin(self) -> None:
        self._completions: list[Sequence[int]] = []
        self._counts: dict[str, int] = {}
        self._positions = 0

    def _count(self, what: str, number: int) -> None:
        self._counts[what] = self._counts.get(what, 0) + number

    def _conclude(self) -> None:
        ids = [token for completion in self._completions for token in completion]
        drawn = {"tokens": len(ids)}
        exact, chance = ({**self._counts, **drawn}, {}) if self._is_fixed else (self._counts, drawn)
        self.works.append(Work(len(self._completions), exact, self._positions, chance))
        self.liked.append(sum(token in self._liked_ids for token in ids) / len(ids))
        self._begin()


def _num_weights() -> int:
    import torch

    gc.collect()
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.nn.Parameter)]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() // one.itemsize for one in found}
    return sum(storages.values())
