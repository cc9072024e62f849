"""Whether a training went well, in words: each known way to go wrong, what was seen of it, and what to try.

Pure functions of what `metrics.jsonl` and the report card say. The `health` of PPO warns of some while it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal

Points = list[tuple[int, float]]
State = Literal["found", "fine", "unknown"]

_PARTS = 5  # a training is looked at in fifths: single steps are noise
_RISE = 0.05  # of a held-out loss over its lowest value, as a share
_LEAST_RISE = 0.02  # nats
_FLOOR = 0.02  # nats: a loss that leaves nothing to learn
_STILL = 0.98  # of the loss at the start: no progress
_DIVERGED = 1.5  # times the loss at the start
_LEAST_DIVERGED = 0.1  # nats
_CLIPPED = 0.4  # share of PPO's ratios
_MOVED = 0.1  # nats a token, by one PPO update
_FAR = 1.0  # nats a token from the reference
_ENTROPY_LEFT = 0.1  # of what there was at the start
_GROWN = 1.5  # times the length at the start
_LEAST_GROWN = 8.0  # tokens
_ENDED = 0.5  # of the share of completions that ended by themselves at the start
_FALLEN = 0.1  # of the log-probability of the chosen responses at the start


@dataclass(frozen=True)
class Verdict:
    """What was seen of one way to go wrong.

    Attributes:
        sign: the way to go wrong.
        state: `found`, `fine`, or `unknown` where it cannot be told.
        seen: the figures, in words; why it cannot be told.
        advice: what to try; empty unless it was found.
    """

    sign: str
    state: State
    seen: str
    advice: str = ""


@dataclass(frozen=True)
class Measured:
    """What a training measured.

    Attributes:
        stage: sft, reward, dpo or ppo.
        history: the entries of `metrics.jsonl`, in order; a number that was not finite is None.
        kept_step: the step whose weights are the result; None where that is not known.
        max_kl: nats a completion from the reference that are too far; None where there is no such limit.
        cards: the report card of each held-out set of pairs.
    """

    stage: str
    history: Sequence[Mapping[str, Any]]
    kept_step: int | None = None
    max_kl: float | None = None
    cards: Mapping[str, Any] = field(default_factory=dict)


def examine(run: Measured) -> list[Verdict]:
    """Look for every way to go wrong that is known of a stage: what was found first, what cannot be told last."""
    order = ("found", "fine", "unknown")
    return sorted((check(run) for check in CHECKS.get(run.stage, ())), key=lambda one: order.index(one.state))


def overfitting(run: Measured) -> Verdict:
    """A held-out loss that rises from its lowest value while the training loss falls."""
    sign = "overfitting"
    sets = {key: points(run.history, key) for key in _keys(run.history) if _is_held_out_loss(key)}
    sets = {key: found for key, found in sets.items() if len(found) > 1}
    trained = points(run.history, "loss")
    if not sets or len(trained) < 2:
        return Verdict(sign, "unknown", "no held-out loss was measured twice: data.eval_fraction holds rows out")
    key = max(sets, key=lambda name: sets[name][-1][1] - min(sets[name], key=_value)[1])
    (best, lowest), (last, now) = min(sets[key], key=_value), sets[key][-1]
    name = key.removesuffix("_loss").removeprefix("eval").strip("_")
    what = f"the held-out loss{f' of {name}' if name else ''}"
    if now - lowest <= max(_RISE * abs(lowest), _LEAST_RISE):
        return Verdict(sign, "fine", f"{what} was lowest at step {best:,} ({number(lowest)}) and ends at {number(now)}")
    before, after = _around(trained, best)
    if after >= before:
        return Verdict(sign, "fine", f"{what} rose to {number(now)}, and so did the training loss")
    kept = " Those weights were kept." if run.kept_step == best else ""
    return Verdict(
        sign,
        "found",
        f"{what} was lowest at step {best:,} ({number(lowest)}) and rose to {number(now)} by step {last:,}, while the "
        f"training loss fell from {number(before)} to {number(after)}.{kept}",
        f"Keep the step where it was lowest ({_keep_best(run.stage)}), train for fewer steps, or add rows.",
    )


def no_progress(run: Measured) -> Verdict:
    """A training loss that ends where it began."""
    sign, losses = "no progress", parts(points(run.history, "loss"))
    if len(losses) < 2:
        return Verdict(sign, "unknown", "too few steps were logged")
    seen = f"the training loss went from {number(losses[0])} to {number(losses[-1])}"
    if losses[0] < _FLOOR or losses[-1] < _STILL * losses[0] or losses[-1] > losses[0] / _STILL:
        return Verdict(sign, "fine", seen)
    advice = "Raise train.learning_rate, train for more steps, or look at what is trained (lora.target_modules)."
    return Verdict(sign, "found", f"{seen}: nothing was learned.", advice)


def floor(run: Measured) -> Verdict:
    """A training loss that is next to nothing from the first step on."""
    sign, first = "loss at the floor from the start", points(run.history, "loss")[:3]
    if not first:
        return Verdict(sign, "unknown", "no training loss was logged")
    highest = max(map(_value, first))
    if highest >= _FLOOR:
        return Verdict(sign, "fine", f"the first training loss was {number(first[0][1])}")
    return Verdict(
        sign,
        "found",
        f"the training loss was {number(highest)} or less from step {first[0][0]:,} on: there was nothing to learn.",
        f"Look at what the loss sees (alignkit inspect {run.stage}): do the prompts hold the answers, are all answers "
        "alike, or was the model trained on these rows before?",
    )


def learning_rate(run: Measured) -> Verdict:
    """A training loss that is no number, or grows beyond what it was at the start."""
    sign, all_losses = "learning rate too high", [entry for entry in run.history if "loss" in entry]
    advice = "Lower train.learning_rate to a third, or lengthen the warm-up (train.warmup_steps)."
    broken = next((entry.get("step") for entry in all_losses if entry["loss"] is None), None)
    if broken is not None:
        return Verdict(sign, "found", f"the training loss was not a finite number at step {broken}.", advice)
    losses = parts(points(run.history, "loss"))
    if len(losses) < 2:
        return Verdict(sign, "unknown", "too few steps were logged")
    worst = max(losses[1:])
    if worst <= _DIVERGED * losses[0] or worst - losses[0] <= _LEAST_DIVERGED:
        return Verdict(sign, "fine", f"the training loss never rose far above its start ({number(losses[0])})")
    seen = f"the training loss rose from {number(losses[0])} to {number(worst)} (means of a fifth of the steps)."
    return Verdict(sign, "found", seen, advice)


def policy_steps(run: Measured) -> Verdict:
    """PPO updates that move the policy further than the clipped loss can vouch for."""
    sign = "learning rate too high"
    clipped = list(map(_value, points(run.history, "policy/clip_fraction")))
    moved = list(map(_value, points(run.history, "policy/approx_kl")))
    if not clipped or not moved:
        return Verdict(sign, "unknown", "no update was logged")
    far = number(fmean(moved))
    seen = f"an update clipped {fmean(clipped):.0%} of the ratios and moved the policy by {far} nats a token"
    if fmean(clipped) <= _CLIPPED and fmean(moved) <= _MOVED:
        return Verdict(sign, "fine", f"{seen}, on average")
    advice = "Lower train.learning_rate or ppo.num_ppo_epochs, or stop passes early with ppo.target_kl."
    return Verdict(sign, "found", f"{seen}, on average.", advice)


def kl(run: Measured) -> Verdict:
    """A policy that has left its reference."""
    sign, totals = "KL", parts(points(run.history, "objective/kl"))
    a_token = parts(points(run.history, "objective/kl_per_token"))
    if not totals or not a_token:
        return Verdict(sign, "unknown", "no KL was measured: there is no reference")
    seen = f"the policy is {number(totals[-1])} nats a completion from its reference, {number(a_token[-1])} a token"
    limit = f", and ppo.max_kl is {run.max_kl:g}" if run.max_kl is not None else ""
    if max(totals) <= (math.inf if run.max_kl is None else run.max_kl) and max(a_token) <= _FAR:
        return Verdict(sign, "fine", seen + limit)
    return Verdict(
        sign,
        "found",
        f"{seen}{limit}: it says what the reference would hardly say, and the reward may be exploited.",
        "Read the rollouts with the highest scores. Raise ppo.kl_coef, set ppo.kl_target, or lower "
        "train.learning_rate.",
    )


def entropy(run: Measured) -> Verdict:
    """A policy that says nearly the same thing every time."""
    key = "objective/entropy" if run.stage == "ppo" else "entropy"
    sign, means = "entropy collapse", parts(points(run.history, key))
    if len(means) < 2:
        return Verdict(sign, "unknown", "the entropy was not measured twice")
    seen = f"the entropy went from {number(means[0])} to {number(means[-1])} nats a token"
    if means[-1] >= _ENTROPY_LEFT * means[0]:
        return Verdict(sign, "fine", seen)
    way = "Raise ppo.kl_coef or ppo.entropy_coef" if run.stage == "ppo" else "Raise train.beta"
    return Verdict(
        sign,
        "found",
        f"{seen}: the policy says nearly the same thing every time.",
        f"{way}, or lower train.learning_rate.",
    )


def length(run: Measured) -> Verdict:
    """Completions that grow, or no longer end."""
    sign, means = "length growth", parts(points(run.history, "rollout/length"))
    ended = parts(points(run.history, "rollout/eos_fraction"))
    if len(means) < 2:
        return Verdict(sign, "unknown", "too few updates were logged")
    seen = f"completions went from {number(means[0])} to {number(means[-1])} tokens"
    seen += f", and {ended[-1]:.0%} of them end by themselves ({ended[0]:.0%} at the start)" if ended else ""
    has_grown = means[-1] > _GROWN * means[0] and means[-1] - means[0] > _LEAST_GROWN
    if not has_grown and not (ended and ended[-1] < _ENDED * ended[0]):
        return Verdict(sign, "fine", seen)
    advice = (
        "Look whether the reward favors length (sort the rollouts by score). ppo.missing_eos_penalty or ppo.overlong"
    )
    return Verdict(sign, "found", f"{seen}.", f"{advice} makes length cost something.")


def held_out_score(run: Measured) -> Verdict:
    """A training score that rises while the held-out score falls."""
    sign, scores = "training score up, held-out score down", points(run.history, "eval_score")
    trained = points(run.history, "objective/score")
    if len(scores) < 2 or len(trained) < 2:
        return Verdict(sign, "unknown", "no held-out score was measured twice: data.eval_fraction holds prompts out")
    (best, highest), (last, now) = max(scores, key=_value), scores[-1]
    errors = dict(points(run.history, "eval_score_se"))
    noise = 2 * math.hypot(errors.get(best, 0.0), errors.get(last, 0.0))
    before, after = _around(trained, best)
    if highest - now <= noise or after <= before:
        seen = f"the held-out score was highest at update {best:,} ({number(highest)}) and ends at {number(now)}"
        return Verdict(sign, "fine", f"{seen}; the training score ends at {number(after)}")
    return Verdict(
        sign,
        "found",
        f"the held-out score was highest at update {best:,} ({number(highest)}) and fell to {number(now)}, while the "
        f"training score rose from {number(before)} to {number(after)}.",
        f"Keep the update where it was highest ({_keep_best('ppo')}), add prompts, or raise ppo.kl_coef.",
    )


def signal(run: Measured) -> Verdict:
    """Updates whose completions all have one score."""
    sign, spreads = "nothing to tell completions apart", list(map(_value, points(run.history, "objective/score_std")))
    if not spreads:
        return Verdict(sign, "unknown", "no update was logged")
    num_alike = sum(spread == 0 for spread in spreads)
    seen = f"in {num_alike:,} of {len(spreads):,} updates all completions had one score"
    if num_alike * 2 <= len(spreads):
        return Verdict(sign, "fine", seen)
    advice = "Take a reward that tells completions apart, harder or easier prompts, or a higher sampling.temperature."
    return Verdict(sign, "found", f"{seen}: there was nothing to learn from.", advice)


def chosen_falls(run: Measured) -> Verdict:
    """Chosen responses that become less likely."""
    sign, held_out = "chosen log-probability falling", points(run.history, "eval_logps/chosen")
    means = list(map(_value, held_out)) if len(held_out) > 1 else parts(points(run.history, "logps/chosen"))
    if len(means) < 2:
        return Verdict(sign, "unknown", "it was not measured twice")
    seen = f"the log-probability of a chosen response went from {number(means[0])} to {number(means[-1])} nats"
    if means[0] - means[-1] <= _FALLEN * abs(means[0]):
        return Verdict(sign, "fine", seen)
    return Verdict(
        sign,
        "found",
        f"{seen}: the model says what it should say less often than before.",
        "Lower train.learning_rate, raise train.beta, add the SFT loss (train.loss_type=[sigmoid,sft]), or fine-tune "
        "on the chosen responses first.",
    )


def length_bias(run: Measured) -> Verdict:
    """A reward model that is no better than the rule "the longer response wins"."""
    sign = "no better than choosing the longer response"
    if not run.cards:
        return Verdict(sign, "unknown", "there is no report card: data.eval_path or data.eval_fraction holds pairs out")
    name = min(run.cards, key=lambda one: run.cards[one]["accuracy"]["low"] - run.cards[one]["longer_wins"]["value"])
    accuracy, longer = run.cards[name]["accuracy"], run.cards[name]["longer_wins"]["value"]
    seen = (
        f"accuracy is {accuracy['value']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%}), that rule {longer:.1%}"
    )
    if accuracy["low"] > longer:
        return Verdict(sign, "fine", seen)
    advice = (
        "Add pairs, balance their lengths (alignkit inspect reward says how length predicts them), or train longer."
    )
    return Verdict(sign, "found", f"{seen}.", advice)


_LOSSES = (learning_rate, floor, no_progress, overfitting)
CHECKS: dict[str, tuple[Callable[[Measured], Verdict], ...]] = {
    "sft": _LOSSES,
    "reward": (*_LOSSES, length_bias),
    "dpo": (*_LOSSES, chosen_falls, entropy),
    "ppo": (policy_steps, kl, entropy, length, signal, held_out_score),
}


def points(history: Sequence[Mapping[str, Any]], key: str) -> Points:
    """Return the finite values of a metric with their steps, in order."""
    found = ((_finite(entry.get("step")), _finite(entry.get(key))) for entry in history)
    return [(int(step), value) for step, value in found if step is not None and value is not None]


def parts(values: Points) -> list[float]:
    """Return the means of the fifths of a metric, or its values where there are fewer."""
    number_of = min(_PARTS, len(values))
    bounds = [round(index * len(values) / number_of) for index in range(number_of + 1)] if number_of else []
    return [fmean(map(_value, values[start:stop])) for start, stop in pairwise(bounds)]


def number(value: float) -> str:
    """Write a figure with three digits."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def _around(trained: Points, step: int) -> tuple[float, float]:
    """The mean of a training metric in the fifth up to a step, and in the last fifth."""
    num = max(len(trained) // _PARTS, 1)
    before = [value for at, value in trained if at <= step][-num:] or [value for _, value in trained[:num]]
    return fmean(before), fmean(value for _, value in trained[-num:])


def _keys(history: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for entry in history for key in entry))


def _is_held_out_loss(key: str) -> bool:
    return key.startswith("eval_") and key.endswith("_loss")


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _value(point: tuple[int, float]) -> float:
    return point[1]


def _keep_best(stage: str) -> str:
    return "early_stopping=3" if stage == "ppo" else "early_stopping=3 with train.eval_strategy=steps"
