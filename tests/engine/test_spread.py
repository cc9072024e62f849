"""Completions spread over servers: a group stays together, and a lost server's share goes to the others."""

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from alignkit.config import SamplingConfig
from alignkit.engine.handover import AdapterFolder
from alignkit.engine.kept import KeptCompletions
from alignkit.engine.request import Request
from alignkit.engine.spread import Spread
from alignkit.engine.vllm_server import VllmServer
from alignkit.errors import TrainingError
from alignkit.sampling.generate import Completion
from serving import Serve
from tiny_vllm import TinyVllm

SAMPLING = SamplingConfig(do_sample=True, temperature=1.0, max_new_tokens=4)
REQUESTS = [Request([group + 1, 2], f"update 0 {group} {k}", group) for group in range(4) for k in range(2)]


def spread(urls: list[str], name: str = "base") -> Spread:
    servers = [VllmServer(url, timeout=30.0) for url in urls]
    for server in servers:
        server.model = name
    return Spread(servers, eos_ids=[258], num_tokens=259, seed=0)


def test_a_group_stays_on_one_server_and_what_is_drawn_does_not_depend_on_it(base: Path, serve: Serve) -> None:
    tiny = [TinyVllm(base), TinyVllm(base)]
    urls = [serve(one) for one in tiny]
    both = spread(urls)
    drawn = both.complete(REQUESTS, SAMPLING)
    of_prompt = defaultdict(set)
    for number, one in enumerate(tiny):
        for body in one.asked:
            of_prompt[body["prompt"][0]].add(number)
    assert of_prompt == {1: {0}, 2: {1}, 3: {0}, 4: {1}}
    assert [member.num_completions for member in both.members] == [4, 4]
    assert [one.token_ids for one in spread(urls[:1]).complete(REQUESTS, SAMPLING)] == [one.token_ids for one in drawn]
    assert len({tuple(one.token_ids) for one in drawn}) > 4  # each has a seed of its own


@pytest.mark.parametrize("fault", [{"dies_after": 1}, {"nonsense": {"token_ids": [999]}}])
def test_the_share_of_a_lost_server_goes_to_the_other(
    base: Path, serve: Serve, fault: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    sound, broken = TinyVllm(base), TinyVllm(base, **fault)
    urls = [serve(sound), serve(broken)]
    both = spread(urls)
    with caplog.at_level(logging.WARNING):
        drawn = both.complete(REQUESTS, SAMPLING)
    assert [one.token_ids for one in drawn] == [one.token_ids for one in spread(urls[:1]).complete(REQUESTS, SAMPLING)]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(urls[1])
    assert line.endswith("; the other servers are asked in its place")
    assert [bool(member.lost) for member in both.members] == [False, True]


def test_where_no_server_is_left_each_is_named(base: Path, serve: Serve) -> None:
    url = serve(TinyVllm(base, dies_after=2))
    with pytest.raises(TrainingError) as caught:
        spread([url, "http://127.0.0.1:9"]).complete(REQUESTS, SAMPLING)
    assert str(caught.value).startswith(f"no server of engine.servers is left: {url} HTTP 500: EngineCore encountered")
    assert "; http://127.0.0.1:9 does not answer: " in str(caught.value)


def test_a_server_that_was_started_again_is_given_the_adapter_and_asked_again(
    base: Path, serve: Serve, adapted: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = TinyVllm(base)
    one = spread([serve(tiny)])
    place = AdapterFolder(tmp_path, "run").write(adapted, "run-1")
    one.load("run-1", place)
    before = one.complete(REQUESTS, SAMPLING)
    tiny.adapters.clear()  # as after a restart
    tiny.model = tiny.model.unload()
    with caplog.at_level(logging.WARNING):
        after = one.complete(REQUESTS, SAMPLING)
    assert after == before
    assert tiny.adapters == ["run-1"]
    assert [record.getMessage() for record in caplog.records] == [f"{one.members[0].server.url} is back"]


def test_the_second_adapter_answers_as_the_second_and_the_first_goes(
    base: Path, serve: Serve, adapted: Any, tmp_path: Path
) -> None:
    tiny = TinyVllm(base)
    one, folder = spread([serve(tiny)]), AdapterFolder(tmp_path, "run")
    one.load("run-1", folder.write(adapted, "run-1"))
    first = one.complete(REQUESTS[:1], SAMPLING)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.neg_()
    one.load("run-2", folder.write(adapted, "run-2"))
    second = one.complete(REQUESTS[:1], SAMPLING)
    assert first != second
    assert tiny.adapters == ["run-2"]
    one.close()
    assert tiny.adapters == []


def test_completions_are_kept_until_they_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "engine" / "completions.jsonl"
    completion = Completion([1, 2], "stop", -1.5, 9, [-0.5, -0.5, -0.5])
    KeptCompletions(path).add({"a": completion})
    with path.open("a") as file:
        file.write('{"key": "b", "token_')  # a kill cut it short
    again = KeptCompletions(path)
    assert (len(again), again.get("a"), again.get("b")) == (1, completion, None)
    again.clear()
    assert (len(again), path.exists()) == (0, False)
