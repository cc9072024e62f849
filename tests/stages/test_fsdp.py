"""FSDP2 with two processes ends with the weights of one process, an adapter and its random base included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from alignkit.launch import launch

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "OMP_NUM_THREADS": "1",
}
WORDS = [
    *("model=tiny_llama", "lora=all_linear", "lora.lora_dropout=0", "data.path=rows.jsonl", "samples=0"),
    *("train.max_steps=3", "train.save_steps=2", "train.report_to=none", "train.optim=sgd", "train.learning_rate=0.3"),
]


def test_two_sharded_processes_end_with_the_weights_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsdp_on_cpu: str
) -> None:
    rows = [{"instruction": f"Say {n}.", "output": f"{n}, " * (1 + n % 5)} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sharded.py").write_text(fsdp_on_cpu + "from alignkit.cli import main\nmain()\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = ["sharded.py", "sft", "name=two", *WORDS, "train.per_device_train_batch_size=2"]
    env = {**os.environ, **FSDP}
    two = subprocess.run([*torchrun, *words], capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    assert two.returncode == 0, two.stdout + two.stderr
    monkeypatch.chdir(tmp_path)
    launch("sft", ["name=one", *WORDS, "train.per_device_train_batch_size=4"])
    assert Path("runs/sft/two/checkpoints/checkpoint-2/pytorch_model_fsdp.bin").is_file()  # it was FSDP that trained
    for file in ("adapter_model.safetensors", "base/model.safetensors"):
        one, two_ = (load_file(Path("runs/sft") / name / file) for name in ("one", "two"))
        assert one.keys() == two_.keys()
        assert max(float((one[key] - two_[key]).abs().max()) for key in one) < 2e-6
