"""TRL's DPO trainer on encoded pairs. The formulas of the losses are in `trl.DPOTrainer._compute_loss`.

Here they get our log-probabilities, and a reference that is what it was: the start of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from trl import DPOTrainer as UpstreamTrainer

from alignkit.data.batches.batching import IGNORED
from alignkit.data.batches.pair_batching import NOTHING, by_side
from alignkit.errors import did_you_mean
from alignkit.models.adapters import FIRST
from alignkit.training.lm_head import complete_head, hidden_states, is_plain_head, lm_head
from alignkit.training.log_probs import token_scores
from alignkit.training.pairs import PairTrainer
from alignkit.training.sharding import is_sharded

REFERENCE_ADAPTER = "ref"  # upstream's name for the frozen copy of an adapter that is trained further

LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
    *("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
# Which losses look at a setting; upstream ignores it beside the others.
_USED_BY = {
    "label_smoothing": {"exo_pair", "robust", "aot", "aot_unpaired"},
    "discopop_tau": {"discopop"},
    "beta": set(LOSSES) - {"sft"},
    "ld_alpha": set(LOSSES) - {"sft"},
}
_WITH_DIVERGENCE = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")


def check_losses(train: Mapping[str, Any]) -> list[str]:
    """List what is wrong with the loss that the section `train` asks for, one line each."""
    asked = train.get("loss_type", "sigmoid")
    losses = [asked] if isinstance(asked, str) else list(asked or ())
    problems = [
        f"train.loss_type: unknown '{loss}'{did_you_mean(str(loss), LOSSES) or '; one of ' + ', '.join(LOSSES)}"
        for loss in losses
        if loss not in LOSSES
    ]
    if not losses:
        problems.append("train.loss_type is empty: name at least one loss")
    weights = train.get("loss_weights")
    if isinstance(weights, list) and len(weights) != len(losses):
        problems.append(f"train.loss_weights has {len(weights)} numbers for {len(losses)} losses: give one for each")
    for key, users in _USED_BY.items():
        if train.get(key) and not users & set(losses):
            problems.append(
                f"train.{key} has no effect on {', '.join(losses)}: it belongs to {', '.join(sorted(users))}"
            )
    if "exo_pair" in losses and not train.get("label_smoothing"):
        problems.append("train.label_smoothing: exo_pair needs one above 0, such as 1e-3")
    divergence = train.get("f_divergence_type", "reverse_kl")
    if divergence not in _DIVERGENCES:
        hint = did_you_mean(str(divergence), _DIVERGENCES) or f"; one of {', '.join(_DIVERGENCES)}"
        problems.append(f"train.f_divergence_type: unknown '{divergence}'{hint}")
    elif divergence != "reverse_kl" and losses == ["sft"]:
        problems.append(f"train.f_divergence_type={divergence} has no effect on sft, which looks at no reference")
    elif divergence != "reverse_kl" and (others := [loss for loss in losses if loss not in _WITH_DIVERGENCE]):
        problems.append(f"train.f_divergence_type={divergence} is not defined for {', '.join(others)}")
    if "f_alpha_divergence_coef" in train and divergence != "alpha_divergence":
        problems.append("train.f_alpha_divergence_coef has no effect without f_divergence_type=alpha_divergence")
    if train.get("use_weighting") and (sorting := {"aot", "aot_unpaired"} & set(losses)):
        problems.append(f"train.use_weighting is not defined for {', '.join(sorted(sorting))}, which sorts its pairs")
    return problems


class DpoTrainer(PairTrainer, UpstreamTrainer):  # type: ignore[misc]  # TRL has no type annotations
    """`trl.DPOTrainer` for pairs that are already encoded.

    The reference is `ref_model` where there is one; else the policy with its adapters off, or with the frozen copy of
    the adapter it started with. Rows with `ref_chosen_logps` and `ref_rejected_logps` need no reference at all.

    Args:
        **rest: as `OrderedTrainer` and upstream take them.
    """

    router_aux_loss_coef: float

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        # Upstream computes reference log-probabilities only where a batch has none; ours always has them.
        self.precompute_ref_logps = True
        args: Any = self.args
        policy = self.accelerator.unwrap_model(self.model)
        for model in (policy, self.accelerator.unwrap_model(self.ref_model)) if self.ref_model else (policy,):
            complete_head(model)
        _copy_what_upstream_left(policy)
        # As in SFT: upstream's head is compact on CUDA only, and sharded or compiled weights cannot be called alone.
        self._own_head = (
            args.device.type != "cuda"
            and not (is_sharded(self) or args.torch_compile)
            and not (self.aux_loss_enabled or self.use_weighting)
            and is_plain_head(policy)
        )

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # upstream's cache is found again by too little: see `keep_reference`

    def keep_reference(self, with_reference: Callable[[Any], Any]) -> None:
        """Give every row its reference log-probabilities, by a function of a data set, before the first step."""
        self.train_dataset = with_reference(self.train_dataset)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: with_reference(rows) for name, rows in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = with_reference(self.eval_dataset)
        self.ref_model = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute DPO's loss (Rafailov et al. 2023, eq. 7) or another of TRL's, over completions laid as [2 B, L]."""
        # The policy first: autocast keeps the casts of trained weights, and casts made without gradient would stay so.
        policy = self._completions(model, inputs, routes=self.aux_loss_enabled)
        if "ref_chosen_logps" not in inputs:
            chosen, rejected = self.reference_log_probs(inputs)
            inputs = {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        # Upstream shifts by one: a first column that is never looked at makes up for it.
        mask = nn.functional.pad(policy.mask, (1, 0))
        laid = {
            "input_ids": torch.zeros_like(mask, dtype=torch.long),
            "attention_mask": inputs["parts"] != NOTHING,
            "completion_mask": mask.long(),
            "ref_chosen_logps": inputs["ref_chosen_logps"],
            "ref_rejected_logps": inputs["ref_rejected_logps"],
        }
        chosen, rejected = self._sums(policy).detach().chunk(2)
        measuring = self.measuring(accuracy="rewards/accuracies", num_tokens=_num_tokens(policy.mask))
        with self._held_out_figures_without_router(), measuring as margins:
            margins(chosen - laid["ref_chosen_logps"] - rejected + laid["ref_rejected_logps"])
            return self._compute_loss(lambda **_: policy, laid, return_outputs)

    @contextmanager
    def _held_out_figures_without_router(self) -> Iterator[None]:
        model: Any = self.model
        coefficient = self.router_aux_loss_coef
        self.router_aux_loss_coef = coefficient if model.training else 0.0
        try:
            yield
        finally:
            self.router_aux_loss_coef = coefficient

    @torch.no_grad()
    def reference_log_probs(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Compute log π_ref of the chosen and of the rejected responses, each [B], with the weights of `ld_alpha`."""
        with self._reference() as model:
            scored = self._completions(model, batch)
        chosen, rejected = self._sums(scored).chunk(2)
        return chosen, rejected

    def _sums(self, scored: SimpleNamespace) -> Tensor:
        """Log-probabilities of whole responses, [2 B]; with `ld_alpha` (Liu et al. 2024) what is longer counts less."""
        log_probs: Tensor = scored.log_probs
        if self.ld_alpha is not None:
            shared = torch.minimum(*scored.mask.sum(1).chunk(2)).repeat(2)
            beyond = scored.mask.cumsum(1) > shared[:, None]
            log_probs = torch.where(beyond, self.ld_alpha * log_probs, log_probs)
        return log_probs.sum(1)

    @contextmanager
    def _reference(self) -> Iterator[nn.Module]:
        if self.ref_model is not None:
            yield self.ref_model
            return
        model: Any = self.model
        policy = self.accelerator.unwrap_model(model)
        was_training = model.training
        model.eval()
        try:
            if not isinstance(policy, PeftModel):
                yield model  # asked before the first step, when policy and reference are one
            elif REFERENCE_ADAPTER not in policy.peft_config:
                with policy.disable_adapter():
                    yield model
            else:
                trained = policy.active_adapter
                policy.base_model.set_adapter(REFERENCE_ADAPTER, inference_mode=True)
                try:
                    yield model
                finally:
                    policy.base_model.set_adapter(trained)
        finally:
            model.train(was_training)

    def _completions(self, model: nn.Module, batch: dict[str, Any], *, routes: bool = False) -> SimpleNamespace:
        """What upstream's losses look at, each [2 B, L] and 0 outside of the responses: chosen ones, then rejected.

        With `routes` a mixture's router loss, too.
        """
        labels_NL, parts_NL = batch["shift_labels"], batch["parts"]
        inputs = self.model_inputs(batch)
        names = ["log_probs", "entropy", "mean_logits", "is_top1"]
        found: dict[str, Any] = {"aux_loss": None}
        if self._own_head:
            mask_NL = labels_NL != IGNORED
            head = lm_head(self.accelerator.unwrap_model(model))
            with hidden_states(head) as caught:
                model(**inputs)
            scores = token_scores(caught[0][mask_NL], head.weight, labels_NL[mask_NL])
            zeros_NL = torch.zeros(labels_NL.shape, device=labels_NL.device)
            found |= {name: zeros_NL.masked_scatter(mask_NL, getattr(scores, name)) for name in names}
        else:
            routers = {"output_router_logits": True} if routes else {}
            output = model(**inputs, **routers, shift_labels=labels_NL, fused_lm_head=True)
            names += ["log_sum_sq_probs"] if self.use_weighting else []
            found |= {name: value for name in names if (value := getattr(output, name)) is not None}
            found["aux_loss"] = getattr(output, "aux_loss", None)
        num_pairs = self.num_pairs(batch)
        laid = {
            name: by_side(value, parts_NL, num_pairs) if isinstance(value, Tensor) and value.ndim == 2 else value
            for name, value in found.items()
        }
        if "is_top1" in laid:
            laid["is_top1"] = laid["is_top1"].bool()
        return SimpleNamespace(mask=by_side((labels_NL != IGNORED).float(), parts_NL, num_pairs).bool(), **laid)


def _num_tokens(mask_2BL: Tensor) -> dict[str, int]:
    """Count what those of upstream's figures that are means over tokens are the means of."""
    chosen, rejected = (int(side.sum()) for side in mask_2BL.chunk(2))
    return {
        "entropy": chosen + rejected,
        "mean_token_accuracy": chosen,
        "logits/chosen": chosen,
        "logits/rejected": rejected,
    }


def _copy_what_upstream_left(policy: Any) -> None:
    """Give the frozen copy of an adapter the weights whose names end in the adapter's: embeddings and single tokens.

    Upstream copies those that have it further in front.
    """
    if not isinstance(policy, PeftModel) or REFERENCE_ADAPTER not in policy.peft_config:
        return
    weights = dict(policy.named_parameters())
    for name, weight in weights.items():
        if name.endswith(f".{FIRST}"):
            weights[name.removesuffix(FIRST) + REFERENCE_ADAPTER].data.copy_(weight.data)
