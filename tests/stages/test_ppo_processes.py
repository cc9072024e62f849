"""Two processes learn by PPO what one process learns."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from alignkit.launch import compose_job, launch
from alignkit.stages.reward import run as reward
from alignkit.stages.sft import run as sft

REWARDS = "def length(prompts, completions, **columns):\n    return [len(c) / 10 for c in completions]\n"
SMALL = ["model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32"]
WORDS = [
    *("template=instruction", "data.path=rows.jsonl", "data.eval_fraction=0.25", "train.report_to=none", "samples=1"),
    *("ppo.num_updates=3", "ppo.num_prompts=8", "ppo.num_mini_batches=1"),
    # plain gradient steps: Adam's first ones divide rounding by rounding where a gradient is nearly zero
    *("sampling.max_new_tokens=6", "train.optim=sgd", "train.learning_rate=0.05", "ppo.score_scaling=running"),
]
KINDS = {
    "full": [*SMALL, "reward=[{function: 'rewards.py:length'}]"],
    # policy, value function and reward are three adapters on one backbone
    "lora": [
        "model.name=base",
        "model.dtype=float32",
        "lora=ppo",
        "lora.r=4",
        "value.model=adapter",
        "reward=[{model: judge}]",
    ],
    # two reference models: one with its own weights, one as a further adapter
    "beside": [*SMALL, "reference.name=base", "reward=[{function: 'rewards.py:length'}]"],
    "named": [
        *("model.name=base", "model.dtype=float32", "lora=ppo", "lora.r=4", "reference.name=adapter"),
        "reward=[{function: 'rewards.py:length'}]",
    ],
}
GROUPS = ["ppo.num_prompts=2", "ppo.num_generations=4", "ppo.refill_flat_groups=1"]
ESTIMATORS = {
    "grpo": ["ppo.advantage=grpo", *GROUPS, "ppo.score_scaling=none", "ppo.mask_truncated=true"],
    "dr_grpo": ["ppo.advantage=dr_grpo", *GROUPS],
    "rloo": ["ppo.advantage=rloo", *GROUPS, "ppo.ratio_over=completion"],
    "reinforce": ["ppo.advantage=reinforce", "ppo.gamma=0.9"],
    "reinforce_baseline": ["ppo.advantage=reinforce_baseline", *GROUPS],
}
KINDS |= {name: [*KINDS["full"], *words] for name, words in ESTIMATORS.items()}
QUICK = [*(kind for kind in KINDS if kind not in ESTIMATORS), "grpo"]
BOTH = """
from alignkit.launch import compose_job, launch
from alignkit.stages.reward import run as reward
from alignkit.stages.sft import run as sft
for kind, words in {kinds!r}.items():
    launch("ppo", [f"name=two-{{kind}}", *{words!r}, *words, "train.per_device_train_batch_size=4"])
"""


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, fork_server: Any) -> Path:
    """The runs `one-…` and `two-…` of each kind that is asked for: of as many processes, 8 completions or 4 on each."""
    folder: Path = fork_server.folder
    rows = [{"instruction": f"Say {'very ' * (n % 3)}{n}.", "output": str(n)} for n in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(REWARDS)
    here = [item for item in request.session.items if item.path == request.path and isinstance(item, pytest.Function)]
    asked = {item.callspec.params["kind"] for item in here if hasattr(item, "callspec")}
    kinds = {kind: words for kind, words in KINDS.items() if kind in asked}
    # In one process group: its seconds of imports are paid once.
    (folder / "both.py").write_text(BOTH.format(kinds=kinds, words=WORDS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pairs = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "no"} for row in rows]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        short = ["train.max_steps=1", "train.report_to=none", "template=instruction", "train.save_strategy='no'"]
        sft.run(compose_job("sft", [*SMALL, *short, "data.path=rows.jsonl", "samples=0"]), folder / "base")
        judge = [
            "model.name=base",
            "model.dtype=float32",
            "lora=ppo",
            "lora.r=2",
            "data.path=pairs.jsonl",
            "train.learning_rate=1e-2",
        ]
        reward.run(compose_job("reward", [*short, *judge]), folder / "judge")
        adapter = ["model.name=base", "lora=ppo", "data.path=rows.jsonl", "samples=0", "train.learning_rate=1e-2"]
        sft.run(compose_job("sft", [*short, *adapter, "train.max_steps=4"]), folder / "adapter")
        for kind, words in kinds.items():
            launch("ppo", [f"name=one-{kind}", *WORDS, *words, "train.per_device_train_batch_size=8"])
    two = fork_server.run_two("both.py")
    assert two.status == 0, two.said
    return folder / "runs/ppo"


WEIGHTS = {
    "full": ["model.safetensors", "value_head.safetensors"],
    "lora": ["adapter_model.safetensors", "value_head.safetensors", "value/adapter_model.safetensors"],
    "beside": ["model.safetensors", "value_head.safetensors"],
    "named": ["adapter_model.safetensors", "value_head.safetensors"],
    **{name: ["model.safetensors"] for name in ESTIMATORS},
}


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_two_processes_end_with_the_weights_of_one(folder: Path, kind: str) -> None:
    for file in WEIGHTS[kind]:
        one, two = load_file(folder / f"one-{kind}" / file), load_file(folder / f"two-{kind}" / file)
        assert max(float((one[key] - two[key]).abs().max()) for key in one) < 2e-6


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_two_processes_draw_and_measure_what_one_does(folder: Path, kind: str) -> None:
    names = (f"one-{kind}", f"two-{kind}")
    one, two = (
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()] for name in names
    )
    assert len(one) == len(two)
    for mine, other in zip(one, two, strict=True):
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            if not key.startswith(("seconds", "tokens_per_second")):
                assert other[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
    texts = [
        [json.loads(line)["completion"] for line in (folder / name / "rollouts.jsonl").read_text().splitlines()]
        for name in names
    ]
    assert texts[0] == texts[1]
    assert len({frozenset(path.name for path in (folder / name).iterdir()) for name in names}) == 1
