"""The sampling section: its contradictions, its schedules, and the same settings as transformers has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import GenerationConfig, PreTrainedModel

from alignkit.config import SamplingConfig
from alignkit.errors import ModelError, as_yaml

DRAW_SETTINGS = ("temperature", "top_k", "top_p", "min_p")
SCHEDULABLE = (*DRAW_SETTINGS, "repetition_penalty")


def draws(sampling: SamplingConfig) -> bool:
    """Tell whether tokens are drawn or the likeliest is taken: `do_sample`, else whether a draw setting is given."""
    if sampling.do_sample is not None:
        return sampling.do_sample
    return any(getattr(sampling, name) is not None for name in DRAW_SETTINGS)


def plain(sampling: SamplingConfig) -> SamplingConfig:
    """Return settings that draw responses of the same length at most from the model's own distribution."""
    return SamplingConfig(do_sample=True, temperature=1.0, max_new_tokens=sampling.max_new_tokens)


def check_sampling(sampling: SamplingConfig, prefix: str = "sampling.", *, over_time: bool = False) -> list[str]:
    """Return one line for each setting that would have no effect or contradicts another.

    The bounds of each setting alone are `config.out_of_bounds`' to check.

    Args:
        sampling: the section.
        prefix: of its settings' names.
        over_time: the settings are those of a training, over which a schedule runs.
    """
    problems = []
    for name in SCHEDULABLE if not over_time else ():
        if isinstance(value := getattr(sampling, name), dict):
            problems.append(
                f"{prefix}{name} is a schedule, from {value['start']} to {value['end']}, which only alignkit ppo can "
                "follow: give one value"
            )
    problems += [
        f"{prefix}stop holds an empty text, which would end every response" for text in sampling.stop if not text
    ]
    if not draws(sampling):
        for name in DRAW_SETTINGS:
            if (value := getattr(sampling, name)) is not None:
                problems.append(
                    f"{prefix}{name}={value} has no effect with {prefix}do_sample=false: "
                    f"remove it, or set {prefix}do_sample=true"
                )
    if sampling.min_new_tokens > sampling.max_new_tokens:
        problems.append(
            f"{prefix}min_new_tokens={sampling.min_new_tokens} is more than "
            f"{prefix}max_new_tokens={sampling.max_new_tokens}: lower the first or raise the second"
        )
    return problems


def sampling_at(sampling: SamplingConfig, progress: float) -> SamplingConfig:
    """Return the settings at a point of training: what has a start and an end is interpolated linearly.

    Args:
        sampling: settings without problems (see `check_sampling` with `over_time`).
        progress: from 0, the start, to 1, the end.

    Returns:
        Settings without schedules; `top_k` is rounded.
    """
    assert 0 <= progress <= 1, progress
    now = {}
    for name in SCHEDULABLE:
        if isinstance(value := getattr(sampling, name), dict):
            moved = value["start"] + (value["end"] - value["start"]) * progress
            now[name] = round(moved) if name == "top_k" else moved
    return replace(sampling, **now)


def generation_config(sampling: SamplingConfig, *, eos_ids: Sequence[int], pad_id: int) -> GenerationConfig:
    """Return the section as transformers has it, for `model.generate` and for the folder of a saved model.

    What `generate` finds unset it takes from the model's own generation config, where many models ship a temperature
    and truncations, and then from its own defaults, which keep the top 50. So everything that shapes the distribution
    is set here, to its neutral value where the section leaves it open.

    Args:
        sampling: settings without problems (see `check_sampling`).
        eos_ids: the tokens that end a response.
        pad_id: what fills the left of shorter prompts.
    """
    settings = {
        "do_sample": draws(sampling),
        "max_new_tokens": sampling.max_new_tokens,
        "min_new_tokens": sampling.min_new_tokens,
        "repetition_penalty": _or(sampling.repetition_penalty, 1.0),
        "eos_token_id": list(eos_ids),
        "pad_token_id": pad_id,
        "num_beams": 1,
        "num_return_sequences": 1,
        "no_repeat_ngram_size": 0,
        "encoder_repetition_penalty": 1.0,
        "use_cache": True,
    }
    if sampling.stop:  # whoever calls model.generate hands it the tokenizer too
        settings["stop_strings"] = list(sampling.stop)
    if settings["do_sample"]:  # without a draw these are refused when such a config is saved, even at neutral values
        settings |= {
            "temperature": _or(sampling.temperature, 1.0),
            "top_k": _or(sampling.top_k, 0),
            "top_p": _or(sampling.top_p, 1.0),
            "min_p": _or(sampling.min_p, 0.0),
            "typical_p": 1.0,
            "epsilon_cutoff": 0.0,
            "eta_cutoff": 0.0,
        }
    return GenerationConfig.from_dict(settings)


def stop_ids(model: PreTrainedModel, of_template: Sequence[int]) -> list[int]:
    """Return the tokens that end a turn of the template, then those at which the model's generation config stops."""
    known = model.generation_config.eos_token_id if model.generation_config is not None else None
    others = known if isinstance(known, list) else [] if known is None else [known]
    if not all(isinstance(token, int) for token in others):
        raise ModelError(
            f"the generation_config.json of the model is damaged: its eos_token_id is {as_yaml(known):.60}"
        )
    return list(dict.fromkeys([*of_template, *others]))


def _or(value: float | None, neutral: float) -> float:
    return neutral if value is None else value
