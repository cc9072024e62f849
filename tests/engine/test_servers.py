"""Servers that are asked before training: the right one passes, each wrong one is told in a line."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.config import SamplingConfig
from alignkit.engine.contact import Needed, contact
from alignkit.engine.handover import AdapterFolder, give_first
from alignkit.engine.probe import probe
from alignkit.engine.vllm_server import VllmServer
from alignkit.errors import ConfigError
from alignkit.models.adapters import Adapters
from serving import Serve
from tiny_vllm import TinyVllm

WARM = SamplingConfig(do_sample=True, temperature=0.7, max_new_tokens=16)


def server(url: str) -> VllmServer:
    return VllmServer(url, timeout=30.0)


def needed(base: Path, **given: Any) -> Needed:
    tokenizer = AutoTokenizer.from_pretrained(base)
    basis = {"model": "base", "tokenizer": tokenizer, "num_tokens": 259, "texts": ["Say <|eos|> it."], "longest": 64}
    return Needed(**{**basis, "adapters": True, **given})


def refusal(base: Path, url: str, **given: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        contact([server(url)], needed(base, **given))
    (line,) = caught.value.problems
    assert line.startswith(f"engine.servers: {url} ")
    return line.removeprefix(f"engine.servers: {url} ")


def test_the_right_server_says_what_it_is(base: Path, serve: Serve) -> None:
    (served,) = contact([server(serve(TinyVllm(base)))], needed(base))
    assert (served.version, served.name, served.root, served.max_length) == ("0.32.0", "base", str(base), 512)


def test_a_server_that_is_another_one_is_refused_before_a_model_is_loaded(base: Path, serve: Serve) -> None:
    assert refusal(base, "http://127.0.0.1:9").startswith("does not answer: ")
    tiny = TinyVllm(base, version=None)
    url = serve(tiny)
    assert refusal(base, url) == "is no vLLM server: HTTP 404: there is no such thing"
    tiny.version, tiny.max_length = "0.32.0", 63
    assert refusal(base, url).startswith(
        "takes 63 tokens, where a prompt with sampling.max_new_tokens has 64: start it "
    )
    tiny.max_length, tiny.loads = 64, False
    assert refusal(base, url).startswith("loads no adapters while it runs: start it with --enable-lora and VLLM_ALLOW")
    assert contact([server(url)], needed(base, adapters=False))
    tiny.loads = True
    assert refusal(base, url, num_tokens=512) == (
        f"serves {base}, whose vocabulary is not that of base, 512 tokens: it is another model"
    )
    tiny.tokenizer = type("Lower", (), {"encode": lambda _, text, **kwargs: [ord(c) for c in text.lower()]})()
    assert refusal(base, url).startswith(f"serves {base}, whose tokenizer is not that of base: from character ")
    assert refusal(base, url, folder="/models/else", texts=[]).endswith("start it with --model /models/else")


def test_every_server_is_told_of_at_once(base: Path, serve: Serve) -> None:
    urls = ["http://127.0.0.1:9", serve(TinyVllm(base, version=None))]
    with pytest.raises(ConfigError) as caught:
        contact([server(url) for url in urls], needed(base))
    assert [line.split()[1] for line in caught.value.problems] == urls


def test_an_adapter_that_a_server_cannot_take_is_refused_with_the_way_out(
    base: Path, adapted: Any, serve: Serve, tmp_path: Path
) -> None:
    tiny = TinyVllm(base, reads=False)
    asked = server(serve(tiny))
    place = AdapterFolder(tmp_path, "run").write(adapted, "run-1")

    def why() -> str:
        with pytest.raises(ConfigError) as caught:
            give_first([asked], "run-1", place)
        (line,) = caught.value.problems
        return line.removeprefix(f"engine.servers: {asked.url} ")

    assert why() == f"cannot read {place}: server and run must share the folder of the run under one path"
    tiny.reads, tiny.max_rank = True, 2
    assert why().startswith("takes adapters of a lower rank: start it with a higher --max-lora-rank, or lower lora.r")
    tiny.max_rank = 0
    assert why().startswith("takes no adapters: start it with --enable-lora")
    tiny.max_rank = 16
    give_first([asked], "run-1", place)
    give_first([asked], "run-1", place)  # it is there already
    assert tiny.adapters == ["run-1"]


def test_a_server_must_draw_from_the_model_that_is_here(
    base: Path, other: Path, adapted: Any, serve: Serve, tmp_path: Path
) -> None:
    tiny = TinyVllm(base)
    asked = server(serve(tiny))
    give_first([asked], "run-1", AdapterFolder(tmp_path, "run").write(adapted, "run-1"))

    def held_against(model: Any, *samplings: SamplingConfig) -> Any:
        prompts = [[5, 6, 7], [8, 9]]
        return probe([asked], model, prompts, samplings or [WARM], eos_ids=[258], num_tokens=259, max_difference=0.02)

    every = SamplingConfig(do_sample=True, temperature=1.3, max_new_tokens=12, min_new_tokens=6)
    (seen,) = held_against(adapted, WARM, every)
    assert seen.difference < 1e-4
    assert seen.num_tokens >= 24
    tiny.raw = True
    with pytest.raises(ConfigError, match=r"before temperature, .* start it with --logprobs-mode processed_logprobs"):
        held_against(adapted)
    held_against(adapted, SamplingConfig(do_sample=True, temperature=1.0, max_new_tokens=16))  # the same at 1
    tiny.raw, tiny.applies = False, False
    with pytest.raises(ConfigError, match="completes with the base model, without the adapter"):
        held_against(adapted)
    with pytest.raises(ConfigError, match=r"serves another model, or another revision of it: .* nats a token"):
        held_against(AutoModelForCausalLM.from_pretrained(other))


def test_an_adapter_is_named_by_its_weights(adapted: Any, tmp_path: Path) -> None:
    folder, adapters = AdapterFolder(tmp_path, "run"), Adapters(adapted)
    first = folder.name_of(adapters)
    assert first == folder.name_of(adapters)
    assert first.startswith("run-")
    weight = next(weight for name, weight in adapted.named_parameters() if "lora_B" in name)
    weight.data[0, 0] += 1e-6
    assert folder.name_of(adapters) != first
    folder.write(adapted, first)
    folder.write(adapted, folder.name_of(adapters))
    folder.remove_others(folder.name_of(adapters))
    assert [place.name for place in tmp_path.iterdir()] == [folder.name_of(adapters)]
