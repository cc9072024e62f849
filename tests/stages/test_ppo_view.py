"""What `alignkit inspect ppo` shows, and what a run then feeds its policy."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import AlignkitError
from alignkit.launch import compose_job
from alignkit.ppo import rollout
from alignkit.stages.ppo import run as ppo
from alignkit.stages.ppo.data import view

REVIEWS = ["A fine film.", "Dull from the first minute.", "Why?", "We laughed until it hurt.", "Ah"]
WORDS = [
    *("model=tiny_gpt2", "model.config.n_layer=1", "data.path=reviews.jsonl", "data.max_dropped=0.5"),
    *("data.prompt_length={min: 3, max: 9}", "reward=[{function: 'alignkit.demo.rewards:count_a'}]"),
    *("ppo.num_updates=2", "ppo.num_prompts=8", "ppo.num_mini_batches=1", "sampling.max_new_tokens=2"),
    *("template=instruction", "samples=0", "train.report_to=none"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reviews.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in REVIEWS))


def test_the_prompts_shown_are_those_that_the_policy_is_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[list[int]] = []
    generate = rollout.generate

    def listening(model: Any, prompts: list[list[int]], *args: Any, **rest: Any) -> Any:
        fed.extend(prompts)
        return generate(model, prompts, *args, **rest)

    monkeypatch.setattr(rollout, "generate", listening)
    shown = [row.prompt_ids for row in view(compose_job("ppo", WORDS)).rows()]
    ppo.run(compose_job("ppo", WORDS), Path("out"))
    assert len(shown) == 4
    assert sorted(fed) == sorted(4 * shown)  # 2 updates of 8 prompts


def test_the_figures_say_what_was_read_and_how_often_it_is_asked() -> None:
    shown = view(compose_job("ppo", WORDS))
    assert shown.figures() == [
        "reviews.jsonl: 5 rows read as text",
        "template instruction, a turn ends in <|eos|>",
        "texts are cut to their first 3 to 9 tokens",
        "2 updates of 8 prompts ask each of them 4.0 times",
        "0.0% of the kept rows truncated",
    ]
    assert shown.ledger.counts() == {"train": {"kept": 4, "dropped: too_short": 1}}
    assert list(shown.sets) == ["train"]


def test_what_a_run_would_refuse_is_refused() -> None:
    with pytest.raises(AlignkitError, match=r"^ppo\.num_prompts=7 × "):
        view(compose_job("ppo", [*WORDS, "ppo.num_prompts=7", "ppo.num_mini_batches=2"]))
