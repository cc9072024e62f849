"""What is measured is what training held out: rows of SFT, chosen responses of pairs, prompts of PPO."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from alignkit.choices import Init
from alignkit.config import ModelConfig, PromptDataConfig, PromptLength, TemplateConfig
from alignkit.data.encode.templates import load_template
from alignkit.data.sets.pairs import load_pairs
from alignkit.data.sets.prompts import load_prompts
from alignkit.errors import ConfigError
from alignkit.evaluate.held_out import HeldOutData, load_held_out
from alignkit.evaluate.served_model import ServedModel
from alignkit.evaluate.trained import split_seed
from alignkit.models.tiny import byte_tokenizer

BYTE = byte_tokenizer()
TEMPLATE = load_template(TemplateConfig(name="question_answer"), BYTE)
MODEL = ModelConfig("tiny", init=Init.random, config={"model_type": "gpt2", "n_positions": 200})
HH = [
    {
        "chosen": f"\n\nHuman: {i}?\n\nAssistant: Early.\n\nHuman: And?\n\nAssistant: yes {i}",
        "rejected": f"\n\nHuman: {i}?\n\nAssistant: Early.\n\nHuman: And?\n\nAssistant: no",
    }
    for i in range(20)
]


@pytest.fixture(autouse=True)
def _rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hh.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in HH))
    Path("text.jsonl").write_text("".join(json.dumps({"text": f"{i} {'word ' * 9}"}) + "\n" for i in range(20)))


def held_out(section: PromptDataConfig, *, as_prompts: bool = False, num_prompts: int = 99) -> HeldOutData:
    model = ServedModel(MODEL, BYTE, TEMPLATE)
    sizes = {"max_new_tokens": 8, "num_prompts": num_prompts}
    return load_held_out(section, model, as_prompts=as_prompts, seed=4, **sizes)


def text(ids: list[int]) -> str:
    return BYTE.decode(ids, skip_special_tokens=True)


def test_of_pairs_the_chosen_responses_are_measured_and_the_prompts_asked() -> None:
    section = PromptDataConfig("hh.jsonl", eval_fraction=0.2)
    data, trained = held_out(section), load_pairs(section, TEMPLATE, BYTE, max_length=200, seed=4)
    assert data.sources == trained.evals["eval"].sources
    assert len(data.sources) == 4
    number = int(data.sources[0].partition(":")[2]) - 1
    assert text([label for label in data.rows[0].labels if label >= 0]) == f"yes {number}"
    assert data.prompt_ids == trained.evals["eval"].dataset["prompt_ids"][:]


def test_a_run_of_ppo_is_asked_the_very_prompts_it_held_out() -> None:
    section = PromptDataConfig("text.jsonl", eval_fraction=0.2, prompt_length=PromptLength(3, 9))
    data, trained = held_out(section, as_prompts=True), load_prompts(section, TEMPLATE, BYTE, max_length=192, seed=4)
    assert (data.rows, data.prompt_ids) == ([], [prompt.ids for prompt in trained.held_out])
    assert len(held_out(section, as_prompts=True, num_prompts=2).prompts) == 2


def record(name: str, seed: int, path: str = "hh.jsonl") -> str:
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    data = asdict(PromptDataConfig(path, eval_fraction=0.2))
    job: dict[str, Any] = {"seed": seed, "data": data, "model": {}, "template": {}}
    text = json.dumps({"stage": "sft", "status": "finished", "job": job, "eval_groups": "conversation"})
    (folder / "run.json").write_text(text)
    return str(folder)


def test_rows_are_held_out_by_the_seed_of_the_run() -> None:
    section = PromptDataConfig("hh.jsonl", eval_fraction=0.2)
    names = [record("a", 7), record("b", 7), record("elsewhere", 8, "other.jsonl")]
    assert split_seed(section, names, 0) == 7
    assert split_seed(section, ["gone", names[2]], 5) == 5
    assert split_seed(PromptDataConfig("hh.jsonl", eval_path="x.jsonl"), names, 0) == 0
    with pytest.raises(ConfigError, match=r"held out of runs/a by seed 7 and runs/c by seed 9: evaluate them one by"):
        split_seed(section, [*names, record("c", 9)], 0)
