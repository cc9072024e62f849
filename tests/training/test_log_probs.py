"""Log-probabilities a few positions at a time, against log-softmax over all of them."""

import math

import pytest
import torch

from alignkit.training import lm_head
from alignkit.training.log_probs import Blocked, token_scores


@pytest.mark.parametrize("at_once", [8_000_000, 22])  # 22 logits: two positions of a vocabulary of eleven at a time
@pytest.mark.parametrize("head_trains", [True, False])
@pytest.mark.parametrize(("temperature", "blocked_ids"), [(1.0, []), (0.7, []), (1.3, [2, 5])])
def test_values_and_gradients_are_those_of_log_softmax(
    monkeypatch: pytest.MonkeyPatch, at_once: int, head_trains: bool, temperature: float, blocked_ids: list[int]
) -> None:
    monkeypatch.setattr(lm_head, "_LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, requires_grad=head_trains)
    targets, upstream = torch.tensor([0, 10, 3, 4, 2, 9, 1]), torch.randn(7, generator=generator)
    is_blocked = torch.tensor([True, False, True, True, False, False, True])
    logits = hidden @ weight.T
    allowed = logits / temperature
    if blocked_ids:
        allowed = allowed.masked_fill(
            is_blocked[:, None] & torch.isin(torch.arange(11), torch.tensor(blocked_ids)), -1e9
        )
    log_probs = allowed.log_softmax(-1)
    expected = log_probs.gather(1, targets[:, None])[:, 0]
    trained = [hidden, *([weight] if head_trains else [])]
    gradients = torch.autograd.grad(expected @ upstream, trained, retain_graph=True)

    blocked = Blocked(is_blocked, torch.tensor(blocked_ids)) if blocked_ids else None
    scores = token_scores(hidden, weight, targets, temperature=temperature, blocked=blocked)
    assert torch.allclose(scores.log_probs, expected, atol=1e-6)
    assert torch.allclose(scores.entropy, -(log_probs.exp() * log_probs).sum(-1), atol=1e-5)
    assert torch.allclose(scores.mean_logits, logits.mean(-1), atol=1e-6)
    assert scores.is_top1.bool().tolist() == (allowed.argmax(-1) == targets).tolist()
    found = torch.autograd.grad(scores.log_probs @ upstream, trained)
    for mine, theirs in zip(found, gradients, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_nothing_is_kept_for_a_backward_pass_that_does_not_come() -> None:
    hidden, weight = torch.randn(3, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    with torch.no_grad():
        assert not token_scores(hidden, weight, torch.tensor([0, 1, 2])).log_probs.requires_grad


def test_the_small_gradient_of_a_confident_token_survives_bfloat16() -> None:
    hidden = torch.tensor([[9.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[1.0, 0.5], [0.0, 0.0]], dtype=torch.bfloat16)
    token_scores(hidden, weight, torch.tensor([0])).log_probs.sum().backward()
    other = 1 / (1 + math.exp(9))  # probability of the other token: bfloat16 rounds 1 − other to 1
    assert hidden.grad is not None
    assert hidden.grad[0].tolist() == pytest.approx([other, 0.5 * other], rel=0.01)


def test_many_tokens_alike_fit_float16() -> None:
    hidden = torch.zeros(1, 2, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(70_000, 2, dtype=torch.float16)  # Z = 70,000 is more than float16 holds
    weight[:35_000, 0] = 1.0
    token_scores(hidden, weight, torch.tensor([0])).log_probs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[0].tolist() == pytest.approx([0.5, 0.0], abs=2e-3)
