"""TRL's reward trainer on encoded pairs. TRL has the Bradley-Terry loss; it gets scores of responses' last tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from trl import RewardTrainer as UpstreamTrainer

from alignkit.data.batches.pair_batching import CHOSEN, NOTHING, REJECTED
from alignkit.models.reward import every_score
from alignkit.training.pairs import PairTrainer


class RewardTrainer(PairTrainer, UpstreamTrainer):  # type: ignore[misc]  # TRL ships no annotations
    """`trl.RewardTrainer` for pairs that are already encoded; arguments as `OrderedTrainer` and upstream take them."""

    def scores(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Score a batch's B pairs, [2, B]: the chosen responses, then the rejected ones."""
        every_NL = every_score(model, self.model_inputs(batch))
        num_pairs, parts_NL = self.num_pairs(batch), batch["parts"]
        sides = [(parts_NL[:num_pairs] == CHOSEN, every_NL[:num_pairs])]
        sides += [(parts_NL[-num_pairs:] == REJECTED, every_NL[-num_pairs:])]
        return torch.stack([every.gather(1, _last(own)[:, None])[:, 0] for own, every in sides])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Average −log σ(r_chosen − r_rejected − margin) over pairs (Bradley and Terry 1952; Ouyang et al. 2022).

        Upstream makes the loss and its figures of the scores handed to it in place of the model's output.
        """
        chosen, rejected = self.scores(model, inputs)
        outputs = SequenceClassifierOutput(logits=torch.cat([chosen, rejected])[:, None])
        seen = {"attention_mask": inputs["parts"] != NOTHING}
        seen |= {"margin": inputs["margin"]} if "margin" in inputs else {}
        with self.measuring(accuracy="accuracy") as margins:
            margins(chosen - rejected)
            return UpstreamTrainer.compute_loss(self, lambda **_: outputs, seen, return_outputs)


def _last(own_BL: Tensor) -> Tensor:
    """Where the last True of each line is, [B]."""
    places_BL = torch.arange(own_BL.shape[1], device=own_BL.device) * own_BL
    return places_BL.argmax(1)
