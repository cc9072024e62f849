"""`alignkit ppo` with servers in place of its own sampler."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignkit.errors import ConfigError, TrainingError
from alignkit.jobs import PpoJob
from alignkit.launch import compose_job
from alignkit.stages.ppo import run as ppo
from alignkit.stages.ppo.check import check_job
from serving import Serve
from tiny_vllm import TinyVllm

Job = Callable[..., PpoJob]


@pytest.fixture
def job(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job of two updates of eight completions, two of each prompt; words override."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("alignkit.ppo.record.plot_panels", lambda *_, **__: False)
    rows = [{"instruction": f"Say {word}.", "output": word} for word in ("one", "two", "three", "four", "five", "six")]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("mine.py").write_text("def length(prompts, completions): return [len(c) / 10 for c in completions]\n")

    def make(*words: str) -> PpoJob:
        basis = [f"model.name={base}", "data.path=rows.jsonl", "template=instruction", "train.report_to=none"]
        basis += [
            "reward=[{function: 'mine.py:length'}]",
            "lora=ppo",
            "model.dtype=float32",
            "samples=1",
            "ppo.num_updates=2",
        ]
        basis += ["ppo.num_prompts=4", "ppo.num_generations=2", "ppo.num_mini_batches=1", "train.learning_rate=1e-2"]
        basis += ["sampling.max_new_tokens=6", "engine.name=vllm", "train.save_steps=1"]
        return compose_job("ppo", [*basis, *words])

    return make


def logged(run_dir: str = "out") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "objective/score" in line]


def test_a_run_learns_from_what_servers_draw(job: Job, serve: Serve, base: Path) -> None:
    tiny = [TinyVllm(base), TinyVllm(base)]
    urls = [serve(one) for one in tiny]
    once = ["ppo.num_ppo_epochs=1", "ppo.num_mini_batches=1"]  # what servers drew is compared before the one pass
    grpo = job(f"engine.servers=[{','.join(urls)}]", "ppo.advantage=grpo", "sampling.temperature=0.7", *once)
    ppo.run(grpo, Path("out"))
    first, second = logged()
    for line in (first, second):
        assert line["engine/mismatch"] < 1e-5
        assert line["engine/mismatch"] <= line["engine/mismatch_max"] < 1e-4
        assert line["engine/seconds"] > 0
        assert line["engine/tokens_per_second"] > 0
        assert all(line[f"engine/{url.removeprefix('http://')}/tokens_per_second"] > 0 for url in urls)
    assert len(set(tiny[0].names)) == 3  # as it starts, after the first update, after the second
    assert tiny[0].names == tiny[1].names
    assert all(name.startswith("out-") for name in tiny[0].names)
    assert tiny[0].adapters == []
    assert not Path("out/engine").exists()
    assert len({body["seed"] for one in tiny for body in one.asked if body["max_tokens"] == 6}) > 16
    said = Path("out/log.txt").read_text()
    assert "engine    vllm: an adapter of a new name after each update; completions are drawn by servers" in said
    assert f"server 1  vLLM 0.32.0, {base}; {urls[0]}: " in said
    assert f"server            {urls[1]}: " in said
    weights = load_file("out/adapter_model.safetensors")
    assert any("lora_B" in name and bool((weight != 0).any()) for name, weight in weights.items())


@pytest.mark.slow
def test_a_correction_of_nothing_changes_next_to_nothing(job: Job, serve: Serve, base: Path) -> None:
    """Where trainer and servers agree, the importance weights are 1."""
    url = serve(TinyVllm(base))
    words = [f"engine.servers=[{url}]", "ppo.num_updates=1"]
    ppo.run(job(*words), Path("plain"))
    ppo.run(job(*words, "engine.correction=truncated"), Path("corrected"))
    plain, corrected = (load_file(f"{name}/adapter_model.safetensors") for name in ("plain", "corrected"))
    assert max(float((plain[name] - corrected[name]).abs().max()) for name in plain) < 1e-4
    (line,) = logged("corrected")
    assert line["engine/weight_mean"] == pytest.approx(1.0, abs=1e-4)
    assert line["engine/weight_cut"] == 0.0


def test_a_run_whose_servers_die_says_so_and_goes_on_with_what_it_was_given(job: Job, serve: Serve, base: Path) -> None:
    steady = TinyVllm(base)
    ppo.run(job(f"engine.servers=[{serve(steady)}]", "train.save_steps=2"), Path("steady"))
    in_all = len(steady.asked)

    tiny = TinyVllm(base, dies_after=in_all - 4)  # in the second update
    url = serve(tiny)
    words = [f"engine.servers=[{url}]", "train.save_steps=2"]
    with pytest.raises(TrainingError, match=r"no server of engine.servers is left: .* HTTP 500: EngineCore") as caught:
        ppo.run(job(*words), Path("out"))
    assert str(caught.value).endswith("; start one again, and go on with resume=true")
    kept = len(Path("out/engine/completions-0.jsonl").read_text().splitlines())
    assert kept >= 9
    tiny.dies_after = None
    before = len(tiny.asked)
    ppo.run(job(*words, "resume=true"), Path("out"))
    said = Path("out/log.txt").read_text()
    assert f"{kept:,} completions that were drawn since the checkpoint are taken as they were" in said
    assert len([body for body in tiny.asked[before:] if body["max_tokens"] == 6]) < 18
    for one, two in zip(logged("steady"), logged("out"), strict=True):
        assert one["objective/score"] == two["objective/score"]
    a, b = (load_file(f"{name}/adapter_model.safetensors") for name in ("steady", "out"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_mismatch_is_told_and_may_stop_the_run(job: Job, serve: Serve, base: Path) -> None:
    words = [f"engine.servers=[{serve(TinyVllm(base))}]", "engine.max_mismatch=1e-12", "ppo.health=stop"]
    with pytest.raises(ConfigError, match="serves another model, or another revision"):
        ppo.run(job(*words), Path("out"))
    assert not Path("out/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["engine.servers=[]"], "engine.name=vllm needs servers: engine.servers=[http://localhost:8000]"),
        (["engine.servers=['localhost:8000']"], "engine.servers: localhost:8000 is no address: give one such as http"),
        (["engine.servers=['http://a','http://a']"], "engine.servers names an address twice: name each server once"),
        (["engine.max_weight=3"], "engine.max_weight=3 has no effect with engine.correction=none: leave it out, or"),
        (["lora=none"], "engine.name=vllm hands an adapter to the servers after each update, and without lora every"),
        (["model.init=random"], "model.init=random: a server of engine.servers reads a model folder; save one first"),
        (["ppo.generation_batch_size=8"], "ppo.generation_batch_size=8 has no effect with engine.name=vllm: a server"),
        (
            ["sampling.top_p=0.9", "ppo.allow_truncated_sampling=true"],
            "sampling.top_p=0.9 with engine.name=vllm: the servers' log-probabilities are of another distribution",
        ),
        (["engine.name=local"], "engine.servers=['http://localhost:8000'] has no effect with engine.name=local"),
        (
            ["engine.name=local", "engine.servers=[]", "engine.correction=truncated"],
            "engine.correction=truncated has no effect with engine.name=local: leave it out, or say engine.name=vllm",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_server_is_asked(job: Job, words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_job(job("engine.servers=['http://localhost:8000']", *words))
    assert any(problem.startswith(line) for problem in caught.value.problems), caught.value.problems
