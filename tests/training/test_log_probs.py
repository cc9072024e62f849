"""Log-probabilities a few positions at a time, against log-softmax over all of them."""

import pytest
import torch

from alignkit.training import loss
from alignkit.training.log_probs import token_scores


@pytest.mark.parametrize("at_once", [8_000_000, 22])  # 22 logits: two positions of a vocabulary of eleven at a time
@pytest.mark.parametrize("head_trains", [True, False])
def test_values_and_gradients_are_those_of_log_softmax(
    monkeypatch: pytest.MonkeyPatch, at_once: int, head_trains: bool
) -> None:
    monkeypatch.setattr(loss, "_LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, requires_grad=head_trains)
    targets, upstream = torch.randint(11, (7,), generator=generator), torch.randn(7, generator=generator)
    logits = hidden @ weight.T
    log_probs = logits.log_softmax(-1)
    expected = log_probs.gather(1, targets[:, None])[:, 0]
    trained = [hidden, *([weight] if head_trains else [])]
    gradients = torch.autograd.grad(expected @ upstream, trained, retain_graph=True)

    scores = token_scores(hidden, weight, targets)
    assert torch.allclose(scores.log_probs, expected, atol=1e-6)
    assert torch.allclose(scores.entropy, -(log_probs.exp() * log_probs).sum(-1), atol=1e-5)
    assert torch.allclose(scores.mean_logits, logits.mean(-1), atol=1e-6)
    assert scores.is_top1.bool().tolist() == (logits.argmax(-1) == targets).tolist()
    found = torch.autograd.grad(scores.log_probs @ upstream, trained)
    for mine, theirs in zip(found, gradients, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_nothing_is_kept_for_a_backward_pass_that_does_not_come() -> None:
    hidden, weight = torch.randn(3, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    with torch.no_grad():
        assert not token_scores(hidden, weight, torch.tensor([0, 1, 2])).log_probs.requires_grad
