"""A policy that FSDP2 shards over two processes learns what one process learns, and each holds its half of it."""

import hashlib
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from alignkit.launch import compose_job
from alignkit.stages.ppo import run as ppo
from alignkit.stages.reward import run as reward
from alignkit.stages.sft import run as sft
from serving import Serve
from tiny_vllm import TinyVllm

REWARDS = "def length(prompts, completions, **columns):\n    return [len(c) / 10 for c in completions]\n"
SMALL = ["model=tiny_gpt2", "model.config.n_layer=2", "model.config.n_embd=32", "model.config.n_inner=32"]
WORDS = [
    *("template=instruction", "data.path=rows.jsonl", "data.eval_fraction=0.2", "train.report_to=none", "samples=1"),
    *("ppo.num_updates=3", "ppo.num_prompts=8", "ppo.num_mini_batches=1", "ppo.num_ppo_epochs=2", "train.save_steps=2"),
    # plain gradient steps: Adam's first ones divide rounding by rounding where a gradient is nearly zero
    *("sampling.max_new_tokens=6", "train.optim=sgd", "train.learning_rate=0.05", "ppo.score_scaling=running"),
]
BASE = ["model.name=base", "model.dtype=float32", "lora=ppo", "lora.r=4"]
BY_LENGTH = ["reward=[{function: 'rewards.py:length'}]"]
GROUPS = ["ppo.num_prompts=2", "ppo.num_generations=4", "ppo.score_scaling=none"]
KINDS = {
    # policy, value function and reward are three adapters on one backbone
    "adapter": [*BASE, "value.model=adapter", "reward=[{model: judge}]"],
    "full": [*SMALL, *BY_LENGTH],
    "lora": [*SMALL, "lora=ppo", "lora.r=4", *BY_LENGTH],
    "own": [*SMALL, *BY_LENGTH, "value.model=own"],
    "checkpointing": [*BASE, *BY_LENGTH, "value.model=adapter", "train.gradient_checkpointing=true"],
    "grpo": [*SMALL, *BY_LENGTH, "ppo.advantage=grpo", *GROUPS, "ppo.num_ppo_epochs=1"],  # one pass an update
    "dr_grpo": [*SMALL, *BY_LENGTH, "ppo.advantage=dr_grpo", *GROUPS[:2]],
    "reinforce": [*SMALL, *BY_LENGTH, "ppo.advantage=reinforce"],
    "reinforce_baseline": [*BASE, *BY_LENGTH, "ppo.advantage=reinforce_baseline", *GROUPS[:2]],
    "rloo": [*BASE, *BY_LENGTH, "ppo.advantage=rloo", *GROUPS, "ppo.refill_flat_groups=1"],
}
ONE = "train.per_device_train_batch_size=4"
SHARDED = ["train.fsdp=true", "train.per_device_train_batch_size=2"]
# as `accelerate launch` says it, from the answers that `accelerate config` proposes
LAUNCHED = {
    **{"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"},
    **{"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_OFFLOAD_PARAMS": "false"},
    **{"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
}
LAYERS = ("adapter", "grpo")  # gathered layer by layer
ADAM = [*KINDS["adapter"], "train.optim=adamw_torch", "train.learning_rate=1e-3", "ppo.num_updates=6"]
ADAM += ["train.adam_epsilon=1e-3"]  # above rounding: Adam would make whole steps of the last bits
HEAD, ADAPTER = "value_head.safetensors", "adapter_model.safetensors"
WEIGHTS = {
    "adapter": [ADAPTER, HEAD, f"value/{ADAPTER}"],
    "full": ["model.safetensors", HEAD],
    "lora": [ADAPTER, HEAD, "base/model.safetensors"],
    "own": ["model.safetensors", HEAD, "value/model.safetensors"],
    "checkpointing": [ADAPTER, HEAD, f"value/{ADAPTER}"],
    **{kind: ["model.safetensors"] for kind in ("grpo", "dr_grpo", "reinforce")},
    "reinforce_baseline": [ADAPTER],
    "rloo": [ADAPTER],
    "served": [ADAPTER, HEAD, f"value/{ADAPTER}"],
}
PROBED = range(4)  # prompts, by each process
TWO = """
import json, os, signal, sys
from pathlib import Path
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from alignkit.launch import compose_job
from alignkit.ppo import record
from alignkit.stages.ppo import run as ppo
record.plot_panels = lambda *args, **kwargs: False

def local(tensors):
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)

class Watch(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if "killed" in args.output_dir and str(state.global_step) == os.environ.get("KILLED_AT"):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_end(self, args, state, control, model, optimizer, **kwargs):
        states = [v for s in optimizer.state.values() for k, v in s.items() if k != "step" and v is not None]
        held = {"weights": (local(model.parameters()), sum(p.nbytes for p in model.parameters())),
                "optimizer": (local(states), sum(v.nbytes for v in states))}
        Path(args.output_dir, f"held-{args.process_index}.json").write_text(json.dumps(held))

for name, words in json.loads(sys.argv[1]).items():
    ppo.run(compose_job("ppo", words), Path("two", name), callbacks=[Watch()])
"""


@pytest.fixture(scope="module")
def folder(fork_server: Any, fsdp_on_cpu: str) -> Path:
    """A folder with rows, a base, and a reward run on it."""
    folder: Path = fork_server.folder
    rows = [{"instruction": f"Say {'very ' * (n % 3)}{n}.", "output": str(n)} for n in range(25)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "two.py").write_text(fsdp_on_cpu + TWO)
    (folder / "whole.py").write_text(TWO)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pairs = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "no"} for row in rows]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        short = ["train.max_steps=1", "train.report_to=none", "template=instruction", "train.save_strategy='no'"]
        sft.run(compose_job("sft", [*SMALL, *short, "data.path=rows.jsonl", "samples=0"]), folder / "base")
        judge = ["lora.r=2", "data.path=pairs.jsonl", "train.learning_rate=1e-2"]
        reward.run(compose_job("reward", [*short, *BASE, *judge]), folder / "judge")
    return folder


def train_both(server: Any, *kinds: str, **env: str) -> None:
    """Train each kind in one process, 4 completions in a pass, and in two, 2 in a pass of each.

    Args:
        server: of forked processes.
        kinds: of `KINDS`.
        env: that shards them, in place of `train.fsdp`.
    """
    for kind in kinds:
        ppo.run(compose_job("ppo", [*WORDS, *KINDS[kind], ONE]), Path("one", kind))
    sharded = SHARDED[1:] if env else SHARDED
    jobs = {kind: [*WORDS, *KINDS[kind], *sharded, *["ppo.gather=layers"] * (kind in LAYERS)] for kind in kinds}
    two = server.run_two("two.py", json.dumps(jobs), **env)
    assert two.status == 0, two.said


def assert_same(folder: Path, kind: str) -> None:
    for file in WEIGHTS[kind]:
        one, two = (load_file(folder / processes / kind / file) for processes in ("one", "two"))
        assert one.keys() == two.keys()
        assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-6, (kind, file)
    assert {path.name for path in (folder / "one" / kind).iterdir()} == {
        path.name for path in (folder / "two" / kind).iterdir()
    }
    texts = [(folder / processes / kind / "samples.jsonl").read_text() for processes in ("one", "two")]
    assert texts[0] == texts[1]
    one, two = (
        [json.loads(line) for line in (folder / processes / kind / "metrics.jsonl").read_text().splitlines()]
        for processes in ("one", "two")
    )
    for mine, other in zip(one, two, strict=True):
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            if "second" not in key:
                assert other[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


def assert_halves(folder: Path, kind: str, *what: str) -> None:
    """Each process holds half of the weights; a weight of an odd number of rows is cut unevenly."""
    for process in range(2):
        held = json.loads((folder / f"two/{kind}/checkpoints/held-{process}.json").read_text())
        for part in what:
            own, whole = held[part]
            assert own < 0.55 * whole, (kind, part, held)


def test_two_shards_end_with_the_weights_of_one_process(
    fork_server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    train_both(fork_server, "adapter", **LAUNCHED)
    assert_same(folder, "adapter")
    assert_halves(folder, "adapter", "weights")


@pytest.mark.slow
def test_every_kind_ends_with_the_weights_of_one_process(
    fork_server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    kinds = [kind for kind in KINDS if kind != "adapter"]
    train_both(fork_server, *kinds)
    for kind in kinds:
        assert_same(folder, kind)
        assert_halves(folder, kind, "weights")
    ids = torch.tensor([[1, 2, 3]])
    for kind, opened in {"full": AutoModelForCausalLM, "checkpointing": AutoPeftModelForCausalLM}.items():
        one, two = (opened.from_pretrained(folder / processes / kind) for processes in ("one", "two"))
        assert (one(ids).logits - two(ids).logits).abs().max() < 1e-5


@pytest.mark.slow
def test_servers_draw_for_two_processes_what_they_draw_for_one(
    folder: Path, fork_server: Any, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    monkeypatch.chdir(folder)
    tiny = TinyVllm(folder / "base")
    url = serve(tiny)
    words = [*WORDS, *KINDS["adapter"], "engine.name=vllm", f"engine.servers=[{url}]"]
    ppo.run(compose_job("ppo", [*words, ONE]), folder / "one/served")
    asked, names = [body["seed"] for body in tiny.asked], tiny.names.copy()
    for sharded, script in ((SHARDED[:1], "two.py"), ([], "whole.py")):
        tiny.asked.clear()
        shutil.rmtree(folder / "two/served", ignore_errors=True)
        two = fork_server.run_two(script, json.dumps({"served": [*words, *SHARDED[1:], *sharded]}))
        assert two.status == 0, two.said
        assert_same(folder, "served")
        # each process asks for its share, after probes of its own
        assert set(asked) == {body["seed"] for body in tiny.asked}
        assert len(tiny.asked) - len(asked) == len(PROBED)
        assert tiny.adapters == []
        assert f"{url}: {len(asked) - len(PROBED)} completions" in (folder / "two/served/log.txt").read_text()
        if sharded:
            assert_halves(folder, "served", "weights")
    # the weights are those of one process to rounding, and so have names of their own; the first ones are the same
    assert tiny.names.count(names[0]) == 3


def bits(run_dir: Path) -> dict[str, str]:
    """Of the result and of what the last checkpoint holds."""
    files = [*run_dir.rglob("*.safetensors"), *run_dir.glob("checkpoints/checkpoint-6/*.pt")]
    files += run_dir.glob("checkpoints/checkpoint-6/ppo_state.json")
    return {str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_killed_and_resumed_is_never_killed(fork_server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = [*WORDS, *ADAM, *SHARDED]
    killed = fork_server.run_two("two.py", json.dumps({"whole": words, "killed": words}), KILLED_AT="3")
    assert killed.status == -signal.SIGKILL
    assert [path.name for path in (folder / "two/killed/checkpoints").iterdir()] == ["checkpoint-2"]
    shutil.copytree("two/killed", "two/alone")
    resumed = fork_server.run_two("two.py", json.dumps({"killed": [*words, "resume=true"]}))
    assert resumed.status == 0, resumed.said
    assert_halves(folder, "killed", "weights", "optimizer")
    assert bits(folder / "two/killed") == bits(folder / "two/whole")
    assert len(bits(folder / "two/killed")) >= 3 + 3
    samples = [(folder / "two" / name / "samples.jsonl").read_text() for name in ("killed", "whole")]
    assert samples[0] == samples[1]
    # one process that holds all goes on from the same checkpoint, to rounding
    ppo.run(compose_job("ppo", [*WORDS, *ADAM, ONE, "resume=force"]), folder / "two/alone")
    for file in WEIGHTS["adapter"]:
        alone, whole = (load_file(folder / "two" / name / file) for name in ("alone", "whole"))
        assert max(float((alone[key] - whole[key]).abs().max()) for key in whole) < 1e-6


class CopyAt(TrainerCallback):
    """Copies a run as it is when its checkpoint of a step is written."""

    def __init__(self, step: int, run_dir: Path, copy: Path) -> None:
        self.step, self.run_dir, self.copy = step, run_dir, copy

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            shutil.copytree(self.run_dir, self.copy)


@pytest.mark.slow
def test_what_one_process_began_two_shards_finish(
    fork_server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "two").mkdir(exist_ok=True)
    words = [*WORDS, *ADAM]
    copied = CopyAt(2, folder / "one/whole", folder / "two/grown")
    ppo.run(compose_job("ppo", [*words, ONE]), folder / "one/whole", callbacks=[copied])
    assert [path.name for path in (folder / "two/grown/checkpoints").iterdir()] == ["checkpoint-2"]
    resumed = fork_server.run_two("two.py", json.dumps({"grown": [*words, *SHARDED, "resume=force"]}))
    assert resumed.status == 0, resumed.said
    assert_halves(folder, "grown", "weights", "optimizer")
    for file in WEIGHTS["adapter"]:
        grown, whole = load_file(folder / "two/grown" / file), load_file(folder / "one/whole" / file)
        assert max(float((grown[key] - whole[key]).abs().max()) for key in whole) < 1e-6
