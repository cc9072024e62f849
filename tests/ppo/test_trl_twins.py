"""Advantages, loss and gradient on a fixed batch against TRL's GRPO and RLOO trainers.

TRL's trainers draw nothing here: they are given the completions. Everything behind the draw is theirs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from alignkit.choices import Advantage, KlAs, LossOver, RatioOver
from alignkit.config import PpoConfig
from alignkit.estimators import settle
from alignkit.models.tiny import byte_tokenizer, random_model
from alignkit.ppo.experience import RolloutTensors, experience
from alignkit.ppo.loss import kl_loss, loss_divisors, policy_loss
from alignkit.ppo.scoring import CompletionScorer, Sequences, pad_sequences

PROMPTS = ("Say one.", "Say two.")  # of one length: TRL counts the positions of GPT-2 from the padding on
LONGEST, BETA, TEMPERATURE = 9, 0.3, 0.8
SCORES = [1.0, 0.25, -2.0, 0.5, 3.0, 3.0, 3.5, -1.0]  # two groups of four
LENGTHS = [9, 1, 4, 6, 3, 9, 2, 5]
EOS = byte_tokenizer().eos_token_id


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twins") / "model"
    tokenizer = byte_tokenizer()
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
    config = {"model_type": "gpt2", **sizes, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    random_model(config, tokenizer=tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def moved(model: nn.Module, *, seed: int) -> None:
    """Add noise to every weight, the same to those of the same name."""
    for number, (_, weight) in enumerate(sorted(model.named_parameters())):
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1000 * seed + number))
        weight.data.add_(0.02 * noise)


def completions(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(20, 120, (length,), generator=generator).tolist() for length in lengths]
    return [[*ids[:-1], EOS] if len(ids) < LONGEST else ids for ids in drawn]


class Twin:
    """One of TRL's trainers, given completions, and what it makes of them."""

    def __init__(self, kind: str, model_dir: Path, ids: list[list[int]], **settings: Any) -> None:
        config, trainer = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}[kind]
        args = config(
            output_dir=str(model_dir.parent / "out"), per_device_train_batch_size=8, num_generations=4,
            num_iterations=2, max_completion_length=LONGEST, beta=BETA, temperature=TEMPERATURE, report_to="none",
            use_cpu=True, bf16=False, gradient_checkpointing=False, model_init_kwargs={"dtype": "float32"}, **settings,
        )  # fmt: skip
        prompts = [{"prompt": prompt} for prompt in PROMPTS]
        self.trainer: Any = trainer(
            str(model_dir), lambda **_: SCORES, args=args, train_dataset=Dataset.from_list(prompts)
        )
        draw = (ids, None) if kind == "grpo" else ids
        self.trainer._generate_single_turn = lambda *_: draw
        self.trainer.current_gradient_accumulation_steps = 1
        self.model = self.trainer.model
        moved(self.model, seed=1)  # the policy has left its reference
        self.model.train()
        self.inputs = self.trainer._generate_and_score_completions([row for row in prompts for _ in range(4)])

    def loss_and_gradient(self, *, steps: int) -> tuple[float, Tensor]:
        if steps:
            moved(self.model, seed=2)  # and the policy that drew
        loss = self.trainer._compute_loss(self.model, self.inputs)
        loss.backward()
        return float(loss.detach()), gradient(self.model)


def gradient(model: nn.Module) -> Tensor:
    weights = dict(sorted(model.named_parameters()))
    return torch.cat([weight.grad.flatten() for weight in weights.values() if weight.grad is not None])


def ours(
    ppo: PpoConfig, model_dir: Path, ids: list[list[int]], *, steps: int, scale: float = 1.0
) -> tuple[float, Tensor, RolloutTensors]:
    """The same by alignkit: loss and gradient, times `scale`, and the tensors of the rollout."""
    ppo, tokenizer = settle(ppo), byte_tokenizer()
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS for _ in range(4)]
    rows = pad_sequences(prompts, ids, pad_id=0, min_new_tokens=0, device=torch.device("cpu"))
    model, ref = (AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval() for _ in range(2))
    moved(model, seed=1)
    with torch.no_grad():
        tensors = experience(
            torch.tensor(SCORES),
            rows.mask_BT,
            trained_BT=rows.mask_BT,
            logprobs_BT=logprobs(model, rows),
            ref_logprobs_BT=logprobs(ref, rows),
            entropies_BT=torch.zeros_like(rows.mask_BT),
            values_BT=None,
            ppo=ppo,
            kl_coef=BETA,
        )
    if steps:
        moved(model, seed=2)
    assert ppo.loss_over is not None
    assert tensors.ref_logprobs_BT is not None
    divisors_B = loss_divisors(rows.mask_BT, ppo.loss_over, max_new_tokens=LONGEST)
    now_BT = logprobs(model, rows)
    loss = policy_loss(
        now_BT,
        tensors.logprobs_BT,
        tensors.advantages_BT,
        rows.mask_BT,
        clip_range=ppo.clip_range,
        num_tokens=int(rows.mask_BT.sum()),
        divisors_B=divisors_B,
        clip_range_high=ppo.clip_range_high,
        dual_clip=ppo.dual_clip,
        ratio_over=ppo.ratio_over,
    ).loss
    if ppo.kl_as is not KlAs.reward:
        old_BT = tensors.logprobs_BT if ppo.kl_as is KlAs.loss_unbiased else None
        kl = kl_loss(now_BT, tensors.ref_logprobs_BT, rows.mask_BT, divisors_B=divisors_B, old_logprobs_BT=old_BT)
        loss = loss + BETA * kl
    (scale * loss).backward()
    return scale * float(loss.detach()), gradient(model), tensors


def logprobs(model: Any, rows: Sequences) -> Tensor:
    return CompletionScorer(model, eos_ids=[EOS], entropy_trains=False)(
        model, rows, temperature=TEMPERATURE
    ).logprobs_BT


GRPO = {
    "grpo": ({"loss_type": "grpo"}, {}),
    "tokens": ({"loss_type": "dapo"}, {"loss_over": LossOver.tokens}),
    "dr_grpo": ({"loss_type": "dr_grpo", "scale_rewards": "none"}, {"advantage": Advantage.dr_grpo}),
    "unbiased": ({"loss_type": "grpo", "use_bias_correction_kl": True}, {"kl_as": KlAs.loss_unbiased}),
    "completion": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"ratio_over": RatioOver.completion},
    ),
    "clips": (
        {"loss_type": "grpo", "epsilon": 0.05, "epsilon_high": 0.1, "delta": 1.15},
        {"clip_range": 0.05, "clip_range_high": 0.1, "dual_clip": 1.15},
    ),
}


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("kind", GRPO)
def test_grpo_is_that_of_trl(kind: str, steps: int, model_dir: Path) -> None:
    theirs, own = GRPO[kind]
    ids = completions(LENGTHS)
    # with the correction, which is TRL's default, its gradient is no longer that of k3 (Shao et al. 2024, eq. 4)
    twin = Twin("grpo", model_dir, ids, **{"use_bias_correction_kl": False, **theirs})
    loss, grad = twin.loss_and_gradient(steps=steps)
    ppo = PpoConfig(**{"advantage": Advantage.grpo, "num_generations": 4, **own})
    found, found_grad, tensors = ours(ppo, model_dir, ids, steps=steps)
    assert tensors.advantages_BT[:, 0].tolist() == pytest.approx(twin.inputs["advantages"].tolist(), abs=1e-5)
    assert found == pytest.approx(loss, abs=1e-5)
    assert grad.abs().max() > 0.01
    assert (found_grad - grad).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("lengths", "own", "scale"),
    [
        (LENGTHS, {"loss_over": LossOver.constant}, LONGEST),
        ([6] * 8, {}, 6),  # the mean over completions that are of one length
    ],
    ids=["constant", "completions"],
)
def test_rloo_is_that_of_trl_times_the_length(
    lengths: list[int], own: dict[str, Any], scale: float, model_dir: Path
) -> None:
    """TRL takes the ratio of a whole completion, whose gradient is a sum over its tokens and not a mean.

    Before the first step, where every ratio is 1, the gradients differ by what the sum is divided by.
    """
    ids = completions(lengths)
    twin = Twin("rloo", model_dir, ids)
    loss, grad = twin.loss_and_gradient(steps=0)
    ppo = PpoConfig(**{"advantage": Advantage.rloo, "num_generations": 4, **own})
    _, found_grad, tensors = ours(ppo, model_dir, ids, steps=0, scale=scale)
    advantages = tensors.advantages_BT[:, 0]
    assert advantages.tolist() == pytest.approx(twin.inputs["advantages"].tolist(), abs=1e-5)
    assert -advantages.mean().item() == pytest.approx(loss, abs=1e-5)
    assert grad.abs().max() > 0.01
    assert (found_grad - grad).abs().max() < 1e-5 * scale
