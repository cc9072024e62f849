"""A request says everything that shapes the distribution; an answer is a completion or is refused."""

import pytest

from alignkit.config import SamplingConfig
from alignkit.engine.client import Refused
from alignkit.engine.request import Request, body_of, completion_of, seed_of

SAMPLING = SamplingConfig(do_sample=True, temperature=0.7, max_new_tokens=4)


def answered(ids: object, logprobs: object, reason: str = "stop", **further: object) -> dict[str, object]:
    choice = {"token_ids": ids, "logprobs": {"token_logprobs": logprobs}, "finish_reason": reason, **further}
    return {"choices": [choice]}


def read(answer: object, sampling: SamplingConfig = SAMPLING) -> object:
    return completion_of(answer, sampling, eos_ids=[9], num_tokens=10)  # type: ignore[arg-type]


def test_what_is_left_open_is_said_at_its_neutral_value() -> None:
    body = body_of(Request([1, 2], "update 0 5 1", 5), SAMPLING, model="run-1", eos_ids=[9], seed=3)
    assert body == {
        "model": "run-1",
        "prompt": [1, 2],
        "n": 1,
        "max_tokens": 4,
        "min_tokens": 0,
        "temperature": 0.7,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed_of(3, "update 0 5 1"),
        "stop": [],
        "stop_token_ids": [9],
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
        "skip_special_tokens": False,
    }


def test_every_sampling_setting_is_passed_and_greedy_is_temperature_0() -> None:
    sampling = SamplingConfig(True, 0.5, 3, 0.9, 0.1, 1.2, max_new_tokens=8, min_new_tokens=2, stop=["x"])
    body = body_of(Request([1], "k", 0), sampling, model="m", eos_ids=[9], seed=0)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens", "min_tokens", "stop")
    assert [body[name] for name in names] == [0.5, 3, 0.9, 0.1, 1.2, 8, 2, ["x"]]
    greedy = body_of(Request([1], "k", 0), SamplingConfig(do_sample=False), model="m", eos_ids=[9], seed=0)
    assert greedy["temperature"] == 0.0


def test_a_seed_is_a_function_of_seed_and_key_and_fits_the_protocol() -> None:
    seeds = {seed_of(seed, key) for seed in (0, 1) for key in ("update 0 1 0", "update 0 1 1", "update 1 1 0")}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, "update 0 1 0") == seed_of(0, "update 0 1 0")


def test_an_answer_ends_by_a_token_by_a_text_or_by_its_length() -> None:
    ended = read(answered([1, 9], [-1.0, -0.5]))
    assert (ended.token_ids, ended.end_id, ended.finish_reason, ended.logprob) == ([1], 9, "stop", -1.5)
    assert ended.token_logprobs == [-1.0, -0.5]
    cut = read(answered([1, 2, 3, 4], [-1.0] * 4, "length"))
    assert (cut.token_ids, cut.end_id, cut.finish_reason) == ([1, 2, 3, 4], None, "length")
    stopping = SamplingConfig(max_new_tokens=4, stop=["x"])
    text = read(answered([1, 2], [-1.0] * 2, "stop", stop_reason="x"), stopping)
    assert (text.token_ids, text.end_id, text.finish_reason) == ([1, 2], None, "stop_string")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"choices": []}, "no tokens or no log-probabilities"),
        (answered(None, [-1.0]), "a log-probability for each of its tokens"),
        (answered([1, 9], [-1.0]), "a log-probability for each of its tokens"),
        (answered([1, 10], [-1.0, -1.0]), "a token that is not of the 10"),
        (answered([1, 9], [-1.0, float("nan")]), "a log-probability that is none"),
        (answered([1, 9], [-1.0, 0.5]), "a log-probability that is none"),
        (answered([9, 1, 2, 3], [-1.0] * 4, "length"), "does not end where it should"),
        (answered([1] * 5, [-1.0] * 5, "length"), "does not end where it should"),
        (answered([1, 2], [-1.0] * 2, "length"), "ends without a reason"),
        (answered([1, 2], [-1.0] * 2, "abort"), "ends without a reason"),
    ],
)
def test_nonsense_is_refused(answer: object, words: str) -> None:
    with pytest.raises(Refused, match=words):
        read(answer)
