"""FSDP2 with two processes ends with the weights of one process, an adapter and its random base included."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from alignkit.launch import launch

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
WORDS = [
    *("model=tiny_llama", "lora=all_linear", "lora.lora_dropout=0", "data.path=rows.jsonl", "samples=0"),
    *("train.max_steps=3", "train.save_steps=2", "train.report_to=none", "train.optim=sgd", "train.learning_rate=0.3"),
]


def test_two_sharded_processes_end_with_the_weights_of_one(
    fork_server: Any, monkeypatch: pytest.MonkeyPatch, fsdp_on_cpu: str
) -> None:
    monkeypatch.chdir(fork_server.folder)
    rows = [{"instruction": f"Say {n}.", "output": f"{n}, " * (1 + n % 5)} for n in range(16)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("sharded.py").write_text(fsdp_on_cpu + "from alignkit.cli import main\nmain()\n")
    words = ["sharded.py", "sft", "name=two", *WORDS, "train.per_device_train_batch_size=2"]
    two = fork_server.run_two(*words, **FSDP)
    assert two.status == 0, two.said
    launch("sft", ["name=one", *WORDS, "train.per_device_train_batch_size=4"])
    assert Path("runs/sft/two/checkpoints/checkpoint-2/pytorch_model_fsdp.bin").is_file()  # it was FSDP that trained
    for file in ("adapter_model.safetensors", "base/model.safetensors"):
        one, two_ = (load_file(Path("runs/sft") / name / file) for name in ("one", "two"))
        assert one.keys() == two_.keys()
        assert max(float((one[key] - two_[key]).abs().max()) for key in one) < 2e-6
