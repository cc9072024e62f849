from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

import alignkit.sampling
from alignkit.config import SamplingConfig
from alignkit.jobs import out_of_bounds
from alignkit.sampling.distribution import distribution
from alignkit.sampling.settings import check_sampling, draws, generation_config, sampling_at

GROUPS = sorted((Path(alignkit.sampling.__file__).parents[1] / "conf" / "sampling").glob("*.yaml"))


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p"])
def test_a_draw_setting_asks_for_a_draw(name: str) -> None:
    assert not draws(SamplingConfig())
    assert draws(SamplingConfig(**{name: 1}))
    assert not draws(SamplingConfig(**{name: 1}, do_sample=False))
    assert draws(SamplingConfig(do_sample=True))
    assert not draws(SamplingConfig(repetition_penalty=1.2))


def test_settings_without_effect_are_refused_each_on_its_line() -> None:
    assert check_sampling(SamplingConfig(do_sample=False, temperature=0.7, top_k=50, repetition_penalty=1.1)) == [
        "sampling.temperature=0.7 has no effect with sampling.do_sample=false: "
        "remove it, or set sampling.do_sample=true",
        "sampling.top_k=50 has no effect with sampling.do_sample=false: remove it, or set sampling.do_sample=true",
    ]


MOVING = SamplingConfig(
    temperature={"start": 1.5, "end": 0.5}, top_k={"start": 10, "end": 51}, top_p=0.9, min_p={"start": 0, "end": 0.1}
)


def test_a_schedule_moves_in_a_straight_line() -> None:
    seen = [sampling_at(MOVING, progress) for progress in (0, 0.25, 1)]
    assert [now.temperature for now in seen] == [1.5, 1.25, 0.5]
    assert [now.top_k for now in seen] == [10, 20, 51]
    assert [now.top_p for now in seen] == [0.9] * 3
    assert [now.min_p for now in seen] == [0, 0.025, 0.1]
    assert sampling_at(SamplingConfig(temperature=0.7), 0.5) == SamplingConfig(temperature=0.7)


def test_a_schedule_is_refused_where_there_is_no_time() -> None:
    assert check_sampling(MOVING, over_time=True) == []
    assert check_sampling(MOVING)[0] == (
        "sampling.temperature is a schedule, from 1.5 to 0.5, which only alignkit ppo can follow: give one value"
    )
    assert len(check_sampling(MOVING)) == 3


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("temperature", 0, "temperature is 0: it must be above 0"),
        ("temperature", -1.0, "temperature is -1.0: it must be above 0"),
        ("temperature", "hot", "temperature is 'hot': it must be a number, or {start: …, end: …} for one that moves"),
        ("temperature", True, "temperature is true: it must be a number, or {start: …, end: …} for one that moves"),
        ("temperature", {"start": 1}, "temperature is {start: 1}: it must be a number, or {start: …, end: …} for one "
         "that moves"),
        ("temperature", {"start": 1, "end": -2}, "temperature.end is -2: it must be above 0"),
        ("top_k", 0, "top_k is 0: it must be at least 1"),
        ("top_k", 2.5, "top_k is 2.5: it must be a whole number, or {start: …, end: …} for one that moves"),
        ("top_p", 0, "top_p is 0: it must be above 0 and at most 1"),
        ("top_p", 1.5, "top_p is 1.5: it must be above 0 and at most 1"),
        ("min_p", 2, "min_p is 2: it must be at least 0 and at most 1"),
        ("repetition_penalty", {"start": "a", "end": 0}, "repetition_penalty.start is 'a': it must be a number, or "
         "{start: …, end: …} for one that moves"),
    ],
)  # fmt: skip
def test_bounds_of_numbers_that_may_move(name: str, value: object, problem: str) -> None:
    assert out_of_bounds(SamplingConfig(**{name: value}))[0] == problem


def test_stop_strings() -> None:
    assert check_sampling(SamplingConfig(stop=["a", ""])) == [
        "sampling.stop holds an empty text, which would end every response"
    ]
    assert generation_config(SamplingConfig(stop=["\n\n"]), eos_ids=[2], pad_id=0).stop_strings == ["\n\n"]


def test_min_above_max_is_refused() -> None:
    assert check_sampling(SamplingConfig(min_new_tokens=9, max_new_tokens=8)) == [
        "sampling.min_new_tokens=9 is more than sampling.max_new_tokens=8: lower the first or raise the second"
    ]
    assert check_sampling(SamplingConfig(min_new_tokens=8, max_new_tokens=8)) == []


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(),
        SamplingConfig(do_sample=False),
        SamplingConfig(do_sample=True),
        SamplingConfig(temperature=0.7, top_k=50, top_p=0.9, min_p=0.1),
    ],
)
def test_sensible_settings_have_no_problem(sampling: SamplingConfig) -> None:
    assert check_sampling(sampling) == []


@pytest.mark.parametrize("path", GROUPS, ids=lambda path: path.stem)
def test_every_shipped_group_is_valid(path: Path) -> None:
    sampling = SamplingConfig(**yaml.safe_load(path.read_text()))
    assert check_sampling(sampling) == []
    assert out_of_bounds(sampling) == []
    assert draws(sampling) == (path.stem != "greedy")


def test_the_groups_are_these() -> None:
    assert [path.stem for path in GROUPS] == ["greedy", "min_p", "nucleus", "temperature", "top_k"]


def test_what_is_open_is_neutral() -> None:
    config = generation_config(SamplingConfig(do_sample=True), eos_ids=[2, 5], pad_id=3)
    assert (config.temperature, config.top_k, config.top_p, config.min_p) == (1.0, 0, 1.0, 0.0)
    assert (config.do_sample, config.repetition_penalty, config.num_beams) == (True, 1.0, 1)
    assert (config.eos_token_id, config.pad_token_id) == ([2, 5], 3)
    assert (config.max_new_tokens, config.min_new_tokens) == (256, 0)


def test_what_is_set_arrives() -> None:
    sampling = SamplingConfig(
        temperature=0.7, top_k=9, top_p=0.8, min_p=0.2, repetition_penalty=1.3, max_new_tokens=12, min_new_tokens=2
    )
    config = generation_config(sampling, eos_ids=[2], pad_id=0)
    assert (config.temperature, config.top_k, config.top_p, config.min_p) == (0.7, 9, 0.8, 0.2)
    assert (config.repetition_penalty, config.max_new_tokens, config.min_new_tokens) == (1.3, 12, 2)


def test_the_models_own_defaults_do_not_leak() -> None:
    """Many models ship a temperature and truncations in their generation config; generate() must not see them."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=120, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            initializer_range=0.5,
        )
    )  # fmt: skip
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.2, top_k=5, top_p=0.3, min_p=0.5, repetition_penalty=4.0, typical_p=0.2
    )
    prompt = torch.tensor([[5, 6, 7, 8]])
    for sampling in (SamplingConfig(do_sample=True), SamplingConfig(temperature=1.5), SamplingConfig(top_p=0.6)):
        config = generation_config(sampling, eos_ids=[2], pad_id=0)
        config.update(max_new_tokens=1, return_dict_in_generate=True, output_scores=True)
        scores = model.generate(prompt, generation_config=config).scores[0]
        expected = distribution(model(prompt).logits[:, -1], sampling)
        assert torch.allclose(scores.softmax(-1), expected, atol=1e-6)
    greedy = generation_config(SamplingConfig(max_new_tokens=1), eos_ids=[2], pad_id=0)
    assert model.generate(prompt, generation_config=greedy)[0, -1] == model(prompt).logits[0, -1].argmax()


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(top_k=3), SamplingConfig(do_sample=True)])
def test_it_can_be_saved_and_says_nothing(
    sampling: SamplingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("transformers").propagate = True
    config = generation_config(sampling, eos_ids=[2], pad_id=0)
    config.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [2]
    assert caplog.text == ""
