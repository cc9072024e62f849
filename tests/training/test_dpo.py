"""Which settings each of TRL's losses looks at, measured on TRL's own code."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import DPOTrainer

from alignkit.training.dpo import LOSSES, check_losses

# Each setting: what upstream has without it, and another value.
SETTINGS: dict[str, tuple[Any, Any]] = {
    "label_smoothing": (0.0, 0.2),
    "discopop_tau": (0.05, 0.7),
    "beta": (0.1, 0.4),
    "ld_alpha": (None, 0.5),
    "f_divergence_type": ("reverse_kl", "forward_kl"),
}


def upstream_loss(loss_type: str, **given: Any) -> float:
    """Compute a loss of TRL's of two pairs, the rejected responses longer."""
    settings = {key: default for key, (default, _) in SETTINGS.items()} | {"label_smoothing": 0.01} | given
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[:, 0] = mask[:2, 5:] = False
    shifted = mask[:, 1:]
    log_probs, others = (-3 * torch.rand(4, 6, generator=generator) * shifted for _ in range(2))
    outputs = SimpleNamespace(log_probs=log_probs, entropy=others, mean_logits=others, is_top1=shifted, aux_loss=None)
    reference = -6 * torch.rand(4, generator=generator)
    inputs = {
        "input_ids": torch.zeros_like(mask, dtype=torch.long),
        "attention_mask": mask,
        "completion_mask": mask.long(),
        "ref_chosen_logps": reference[:2],
        "ref_rejected_logps": reference[2:],
    }
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        **settings,
        args=SimpleNamespace(discopop_tau=settings["discopop_tau"]),
        model=SimpleNamespace(training=False),
        accelerator=accelerator,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        f_alpha_divergence_coef=0.5,
        loss_types=[loss_type],
        loss_weights=[1.0],
        use_weighting=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    return float(DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False))


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_is_refused_where_upstream_s_loss_does_not_look_at_it(setting: str, loss_type: str) -> None:
    default, other = SETTINGS[setting]
    basis = 0.01 if setting == "label_smoothing" else default
    has_effect = upstream_loss(loss_type, **{setting: basis}) != upstream_loss(loss_type, **{setting: other})
    asked = {"loss_type": loss_type, setting: other}
    asked |= {"label_smoothing": 0.01} if loss_type == "exo_pair" and setting != "label_smoothing" else {}
    problems = check_losses(asked)
    assert (problems == []) == has_effect, problems
    assert all(line.startswith(f"train.{setting}") for line in problems)
    beside = check_losses(asked | {"loss_type": [loss_type, "robust"]}) if has_effect else []
    assert beside == []
