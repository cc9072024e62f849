"""No secret is written out, and nothing else is hidden."""

from dataclasses import fields

import pytest
from transformers import TrainingArguments

from alignkit.jobs import JOBS, settings
from alignkit.runs.given import mask_settings, mask_words


@pytest.mark.parametrize(
    ("words", "masked"),
    [
        (["sft", "train.hub_token=hf_abc"], ["sft", "train.hub_token=***"]),
        (["model.revision=main", "train.push_secret=x"], ["model.revision=main", "train.push_secret=***"]),
        (["train.hub_token=${oc.env:TOKEN}"], ["train.hub_token=${oc.env:TOKEN}"]),
        (
            ["reward=[{function: 'f.py:score', api_key: 'a, b'}]", "template.kwargs={key: v, n: 1}"],
            ["reward=[{function: 'f.py:score', api_key: ***}]", "template.kwargs={key: ***, n: 1}"],
        ),
        (["data.columns.key=id", "data.columns={token: word}"], ["data.columns.key=id", "data.columns={token: word}"]),
        (["--api-key", "abc", "name=x"], ["--api-key", "***", "name=x"]),
        (
            ["sampling.max_new_tokens=5", "data.control_tokens=text"],
            ["sampling.max_new_tokens=5", "data.control_tokens=text"],
        ),
    ],
)
def test_words_that_name_a_secret_are_masked(words: list[str], masked: list[str]) -> None:
    assert mask_words(words) == masked


def test_settings_that_name_a_secret_are_masked_wherever_they_are() -> None:
    given = {"train": {"hub_token": "hf", "nested": {"password": "p"}}, "api_key": "${oc.env:KEY}", "key_size": 3}
    masked = {"train": {"hub_token": "***", "nested": {"password": "***"}}, "api_key": "${oc.env:KEY}", "key_size": 3}
    assert mask_settings(given) == masked
    columns = {"data": {"columns": {"key": "id"}, "api_key": "a"}}
    assert mask_settings(columns) == {"data": {"columns": {"key": "id"}, "api_key": "***"}}
    listed = {"reward": [{"function": "f.py:score", "api_key": "a"}], "credentials": {"user": "u", "all": ["b", 3]}}
    assert mask_settings(listed) == {
        "reward": [{"function": "f.py:score", "api_key": "***"}],
        "credentials": {"user": "***", "all": ["***", 3]},
    }


def test_no_setting_of_ours_or_of_upstream_is_hidden_but_those_that_are_secret() -> None:
    ours = {key for job in JOBS.values() for key, *_ in settings(job())}
    upstream = {f"train.{item.name}" for item in fields(TrainingArguments)}
    hidden = {key for key in ours | upstream if mask_words([f"{key}=x"]) != [f"{key}=x"]}
    assert hidden == {"train.hub_token"}
