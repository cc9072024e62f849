"""What shipped recipes name and no test downloads: models of the hub without their weights, runs, rows and rewards.

A model is its `config.json`, in a cache of the hub, with a tokenizer of bytes. The longest row is as long as its recipe
lets it be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from alignkit.config import ModelConfig
from alignkit.launch import compose_job
from alignkit.models.reward import SCORES, as_reward_model
from alignkit.models.skeleton import skeleton
from alignkit.models.tiny import byte_tokenizer
from alignkit.planning.unfilled import with_adapter

_FIXTURES = Path(__file__).parents[1] / "fixtures" / "hub"
_COMMIT = "0" * 40
_STEP, _ROOM = 16, 8  # letters between the lengths of rows; as many of these are left for what a template adds
_LORA = {"target_modules": "all-linear", "r": 16}
# The runs that recipes start from or are rewarded by, and the models that they are adapters on.
_RUNS = {
    "runs/sft/smollm2-135m-lora": ("HuggingFaceTB/SmolLM2-135M-Instruct", "CAUSAL_LM"),
    "runs/reward/smollm2-135m-reward": ("HuggingFaceTB/SmolLM2-135M-Instruct", "SEQ_CLS"),
    "runs/reward/qwen3-0.6b-reward": ("Qwen/Qwen3-0.6B", "SEQ_CLS"),
}
_REWARDS = """
def right(prompts, completions, answer, **columns):
    return [float(answer[i] in completion) for i, completion in enumerate(completions)]

def polite(prompts, completions, **columns):
    return [float("please" in completion) for completion in completions]
"""
_CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{% else %}\
{{ message.content }}<|im_end|>{% endif %}
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def fill_hub(hub: Path) -> None:
    """Write the models of the fixtures into a cache of the hub."""
    for config in sorted(_FIXTURES.glob("*.json")):
        repository = hub / f"models--{config.stem}"
        snapshot = _snapshot(hub, config.stem)
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(_COMMIT)
        (snapshot / "config.json").write_text(config.read_text())
        _save_tokenizer(snapshot)


def write_project(folder: Path, hub: Path) -> None:
    """Write what recipes find in the folder they are launched in; the models are in the cache of the hub."""
    for name, rows in _rows().items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "my_rewards.py").write_text(_REWARDS)
    for name, (base, task_type) in _RUNS.items():
        _write_adapter(folder / name, base, task_type, _snapshot(hub, base.replace("/", "--")))


def words_of(recipe: str) -> list[str]:
    """What is typed behind the stage to launch a recipe on rows of `write_project`, the longest as long as it takes."""
    stage = recipe.partition("/")[0]
    longest = compose_job(stage, [f"config={recipe}"]).data.max_length
    file = {"sft": "rows", "ppo": "prompts" if longest else "texts"}.get(stage, "pairs")
    limit = (longest or 2048) // _STEP - _ROOM
    return [f"config={recipe}", f"data.path={file}.jsonl", "data.split=null", f"data.limit={limit}"]


def _rows() -> dict[str, list[dict[str, str]]]:
    lengths = range(_STEP, 2048, _STEP)
    return {
        "rows.jsonl": [{"prompt": f"Say {n}.", "completion": "a" * n} for n in lengths],
        "pairs.jsonl": [{"prompt": f"Say {n}.", "chosen": "a" * n, "rejected": "b" * n} for n in lengths],
        "prompts.jsonl": [{"prompt": "a" * n, "answer": "a"} for n in lengths],
        "texts.jsonl": [{"text": "a" * n} for n in lengths],
    }


def _snapshot(hub: Path, name: str) -> Path:
    return hub / f"models--{name}" / "snapshots" / _COMMIT


def _write_adapter(folder: Path, base: str, task_type: str, place: Path) -> None:
    """Write an adapter of zeros on a model that has no weights, and that is in this place."""
    folder.mkdir(parents=True)
    section = ModelConfig(str(place))
    built: Any = skeleton(section)
    if task_type == "SEQ_CLS":
        built = as_reward_model(built, byte_tokenizer(), seed=0)
        (folder / SCORES).write_text(json.dumps({"mean": 0.0, "std": 1.0}))
    model = with_adapter(built, section, _LORA, task_type=task_type)
    model.peft_config["default"].base_model_name_or_path = base
    model.peft_config["default"].save_pretrained(folder)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    weights = {name: torch.zeros(weight.shape) for name, weight in state.items()}
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    _save_tokenizer(folder)


def _save_tokenizer(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = _CHATML
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(folder)
