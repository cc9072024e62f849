"""PPO on runs of `alignkit reward`: scored as `alignkit score` scores, in the reward run's own template."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from alignkit.choices import TrainOn
from alignkit.config import ModelConfig
from alignkit.data.encode.masking import EncodeRules, encode
from alignkit.data.encode.templates import load_template
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.launch import compose_job
from alignkit.models.load import load_tokenizer
from alignkit.models.reward import load_reward, reward_tokenizer, score_statistics, scores_of
from alignkit.rewards.load import check_rewards, load_rewards
from alignkit.rewards.sample import Sample
from alignkit.rewards.source import parse_rewards
from alignkit.stages.ppo import run as ppo
from alignkit.stages.reward import run as reward

WORDS = ["one", "two", "three", "four", "five", "six"]
PAIRS = [
    {"prompt": f"Say {a} and {b}.", "chosen": f"{a}, {b}!", "rejected": f"{b * (1 + i % 3)}"}
    for i, a in enumerate(WORDS)
    for b in WORDS
]
SMALL = ["model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32"]
KINDS = {"full": [], "lora": ["lora=ppo", "lora.r=4"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, prompts and the reward runs `full` and `lora`."""
    folder = tmp_path_factory.mktemp("reward-run")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in PAIRS))
    words = [*SMALL, "template=question_answer", "data.path=pairs.jsonl", "data.eval_fraction=0.2"]
    train = ["train.max_steps=8", "train.learning_rate=1e-2", "train.report_to=none"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, more in KINDS.items():
            reward.run(compose_job("reward", [*words, *train, *more]), Path(name))
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("standardise", [False, True])
def test_a_score_is_that_of_the_reward_run(kind: str, standardise: bool) -> None:
    sources = parse_rewards([{"model": kind, "standardise": standardise, "batch_size": 4}])
    assert check_rewards(sources) == []
    rewards = load_rewards(sources, ModelConfig(), device=torch.device("cpu"))
    job = compose_job("score", ["data.path=pairs.jsonl", f"model.name={kind}"])
    tokenizer = load_tokenizer(job.model)
    template = load_template(job.template, tokenizer)
    tokenizer = reward_tokenizer(tokenizer, end_id=template.end_id)
    model = load_reward(job.model, tokenizer)
    conversations = [_conversation(row["prompt"], row["chosen"]) for row in PAIRS[:5]]
    rules = EncodeRules(TrainOn.last_turn)
    rows = [row for c in conversations for row in encode(c, template, tokenizer, rules)]
    ends = [row.input_ids[: row.responses[-1][1]] for row in rows]
    wanted = scores_of(model, ends, pad_id=tokenizer.pad_token_id, batch_size=2)
    samples = [Sample("x", _asked(row["prompt"]), row["chosen"]) for row in PAIRS[:5]]
    mean, std = score_statistics(Path(kind))
    if standardise:
        wanted = [(score - mean) / std for score in wanted]
    assert rewards.score(samples).total == pytest.approx(wanted, abs=1e-4)


def _asked(prompt: str) -> Conversation:
    return Conversation((Message("user", prompt),))


def _conversation(prompt: str, answer: str) -> Conversation:
    return Conversation((Message("user", prompt), Message("assistant", answer)))


@pytest.mark.parametrize("kind", KINDS)
def test_ppo_learns_from_a_reward_run_and_warns_of_another_template(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "template=instruction", "data.path=prompts.jsonl", "train.report_to=none", "samples=1"]
    sizes = ["ppo.num_updates=2", "ppo.num_prompts=8", "ppo.num_mini_batches=1", "sampling.max_new_tokens=6"]
    out = Path(f"ppo-{kind}")
    ppo.run(compose_job("ppo", [*words, *sizes, f"reward=[{{model: {kind}}}]"]), out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if line.get("objective/score_std", 0) > 0]) == 2
    said = capsys.readouterr().out
    assert f"reward[0]: {kind} was trained with another template than tiny_gpt2 answers in" in said
    cut = re.findall(
        r"reward\[0\]: (\w+) scores (\d) of 8 responses of update \d as if they had ended, where (\S+) cut", said
    )
    assert len(cut) == 1  # once
    assert (cut[0][0], cut[0][2]) == (kind, "sampling.max_new_tokens=6")
    ppo.run(
        compose_job("ppo", [*words, *sizes, f"reward=[{{model: {kind}}}]", "ppo.missing_eos_penalty=1"]), Path("paid")
    )
    assert "as if they had ended" not in capsys.readouterr().out
    shutil.rmtree("paid")


def test_a_language_model_is_no_reward() -> None:
    (line,) = check_rewards(parse_rewards([{"model": "ppo-full"}]))
    assert line.startswith("reward[0].model: ppo-full ")
