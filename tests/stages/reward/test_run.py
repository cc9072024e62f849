"""`alignkit reward`: the loss by value, and a run directory that scores as it did when it was trained."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from alignkit.config import ModelConfig
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import ConfigError, ModelError
from alignkit.jobs import RewardJob
from alignkit.launch import compose_job
from alignkit.models.load import load_model, load_tokenizer
from alignkit.models.reward import as_reward_model, load_reward, reward_tokenizer, scores_of
from alignkit.models.tiny import byte_tokenizer
from alignkit.rewards.load import load_rewards
from alignkit.rewards.sample import Sample
from alignkit.rewards.source import RewardSource
from alignkit.stages.reward import run as reward
from alignkit.stages.reward.check import check_job
from alignkit.stages.sft import run as sft
from alignkit.training.reward import RewardTrainer

Job = Callable[..., RewardJob]
Rows = list[dict[str, Any]]
# In float32, so that values can be compared closely wherever the tests run.
FLOAT32 = ["model.dtype=float32", "train.bf16=false"]
SMALL = ["model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32"]
TINY = ["model=tiny_gpt2", *SMALL, "template=instruction", *FLOAT32]


@pytest.fixture
def job(pair_job: Callable[..., Any]) -> Job:
    return lambda *words: pair_job("reward", *words)


def prompts(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(f"### Response:\n{text}<|eos|>")["input_ids"] for text in ("one, two!", "one, no, no", "x")]


def metrics(run_dir: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


class Fixed:
    """Stands where a trainer is asked for the scores of two pairs."""

    scores = staticmethod(lambda *_: torch.tensor([[2.0, -0.5], [0.5, 1.0]]))


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        # margins of 1.5 and −1.5: −log σ(1.5) = 0.2014, −log σ(−1.5) = 1.7014
        (None, (0.20141328 + 1.70141328) / 2),
        # and of 0.5 and −2.5 where 1 is asked for
        ([1.0, 1.0], (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(2.5))) / 2),
    ],
)
def test_the_loss_of_two_pairs_is_bradley_and_terry_s(
    job: Job, monkeypatch: pytest.MonkeyPatch, margin: list[float] | None, expected: float
) -> None:
    found = []

    def compute(self: RewardTrainer, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        parts = torch.ones(2, 3, dtype=torch.long)
        batch = {"parts": parts} | ({"margin": torch.tensor(margin)} if margin else {})
        monkeypatch.setattr(RewardTrainer, "scores", Fixed.scores)
        found.append(upstream(self, model, batch).item())
        monkeypatch.setattr(RewardTrainer, "scores", scores)
        return upstream(self, model, inputs, *args, **kwargs)

    upstream, scores = RewardTrainer.compute_loss, RewardTrainer.scores
    monkeypatch.setattr(RewardTrainer, "compute_loss", compute)
    reward.run(job(*TINY, "train.max_steps=1"), Path("run"))
    assert found == [pytest.approx(expected, abs=1e-6)]


@pytest.mark.parametrize("batching", ["packed", "grouped", "padded"])
def test_the_layout_of_a_batch_changes_nothing_but_rounding(job: Job, batching: str) -> None:
    words = [*TINY, "data.shuffle=false", "train.max_steps=1", "train.per_device_train_batch_size=32"]
    reward.run(job(*words, f"data.batching={batching}"), Path(batching))
    reward.run(job(*words, "data.batching=padded"), Path("reference"))
    first, second = metrics(batching)[0], metrics("reference")[0]
    for key in ("loss", "grad_norm", "margin", "mean_reward"):
        assert first[key] == pytest.approx(second[key], abs=1e-5)


@pytest.mark.usefixtures("drawn")
def test_it_learns_and_its_card_says_so(job: Job) -> None:
    words = ["model=tiny_gpt2", "template=instruction", *FLOAT32, "train.max_steps=40", "data.eval_fraction=0.25"]
    reward.run(job(*words), Path("run"))
    card = json.loads(Path("run/report_card.json").read_text())["eval"]
    assert card["accuracy"]["value"] == 1.0
    assert card["pairs"] == 8
    kept = json.loads(Path("run/score.json").read_text())
    assert kept == {"mean": card["score_mean"], "std": card["score_std"]}
    assert {path.name for path in Path("run").iterdir()} >= {"report_card.png", "rows.jsonl", "log.txt", "loss.png"}
    assert json.loads(Path("run/run.json").read_text())["result"]["eval_accuracy"] == 1.0


def test_a_full_run_scores_in_transformers_as_in_alignkit(job: Job) -> None:
    reward.run(job(*TINY), Path("run"))
    tokenizer = load_tokenizer(ModelConfig(name="run"))
    model = load_reward(ModelConfig(name="run", dtype="float32"), tokenizer)
    rows = prompts(tokenizer)
    ours = scores_of(model, rows, pad_id=tokenizer.pad_token_id, batch_size=2)
    plain = AutoModelForSequenceClassification.from_pretrained("run")
    padded = AutoTokenizer.from_pretrained("run").pad({"input_ids": rows}, return_tensors="pt", padding_side="right")
    assert torch.allclose(plain(**padded).logits[:, 0], torch.tensor(ours), atol=1e-5)


@pytest.mark.parametrize("adapter", [[], ["lora=default", "train.learning_rate=1e-2"]], ids=["full", "adapter"])
@pytest.mark.parametrize("template", ["chatml", "instruction"])
def test_the_readme_of_a_run_scores_as_alignkit_does(job: Job, adapter: list[str], template: str) -> None:
    reward.run(job(*TINY, *adapter, f"template={template}"), Path("run"))
    answer = "three, four!"
    (code,) = re.findall(r"```python\n(.*?)```", Path("run/README.md").read_text(), flags=re.DOTALL)
    messages = [{"role": "user", "content": "Say three."}, {"role": "assistant", "content": answer}]
    found: dict[str, Any] = {"folder": "run", "messages": messages}
    exec(code, found)
    source = RewardSource("reward[0]", model="run")
    section = ModelConfig(name="run", dtype="float32")
    rewards = load_rewards([source], section, device=torch.device("cpu"))
    sample = Sample("row", Conversation((Message("user", "Say three."),)), answer)
    assert found["score"] == pytest.approx(rewards.score([sample]).total[0], abs=1e-6)


def test_an_adapter_keeps_its_score_head(job: Job) -> None:
    reward.run(job(*TINY, "lora=default", "train.learning_rate=1e-2"), Path("run"))
    tokenizer = load_tokenizer(ModelConfig(name="run"))
    model = load_reward(ModelConfig(name="run", dtype="float32"), tokenizer)
    rows = prompts(tokenizer)
    ours = scores_of(model, rows, pad_id=tokenizer.pad_token_id, batch_size=1)
    plain = AutoPeftModelForSequenceClassification.from_pretrained("run", num_labels=1).eval()
    theirs = [plain(input_ids=torch.tensor([row])).logits.item() for row in rows]
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert "base_model.model.score.weight" in load_file("run/adapter_model.safetensors")


def test_an_sft_adapter_is_merged_and_never_ignored(job: Job, write_rows: Callable[..., Path], pairs: Rows) -> None:
    write_rows([{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs])
    basis = ["model=tiny_gpt2", "lora=default", "data.path=rows.jsonl", "train.learning_rate=1e-2", "samples=0"]
    sft.run(compose_job("sft", [*basis, "train.max_steps=4", "train.report_to=none"]), Path("sft"))
    reward.run(job("model.name=sft", "lora=default", "train.learning_rate=1e-12", *FLOAT32), Path("run"))
    tokenizer = load_tokenizer(ModelConfig(name="sft"))
    policy = load_model(ModelConfig(name="sft", dtype="float32"), tokenizer=tokenizer, seed=0, trainable=False)
    trained = load_reward(ModelConfig(name="run", dtype="float32"), load_tokenizer(ModelConfig(name="run")))
    ids = torch.tensor(prompts(tokenizer)[:1])
    of_policy = policy(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    of_reward = trained(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(of_policy, of_reward, atol=1e-5)
    assert "the adapter sft is merged into its base" in Path("run/log.txt").read_text()


def test_a_tokenizer_that_pads_with_its_end_gets_a_pad_of_its_own() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    size = len(tokenizer)
    assert reward_tokenizer(tokenizer, end_id=tokenizer.eos_token_id).pad_token == "<|pad|>"
    assert len(tokenizer) == size  # this vocabulary has one already
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=size - 1, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    model = as_reward_model(GPT2LMHeadModel(config), tokenizer, seed=0)
    assert model.get_input_embeddings().weight.shape[0] == size
    rows = [[1, 2, 3, tokenizer.eos_token_id], [4, tokenizer.eos_token_id]]
    alone = [model(input_ids=torch.tensor([row])).logits.item() for row in rows]
    padded = torch.tensor([rows[0], [*rows[1], tokenizer.pad_token_id, tokenizer.pad_token_id]])
    assert model(input_ids=padded, attention_mask=(padded != tokenizer.pad_token_id).long()).logits[
        :, 0
    ].tolist() == pytest.approx(alone, abs=1e-6)


def test_margins_in_the_data_are_subtracted_unless_told_otherwise(
    job: Job, write_rows: Callable[..., Path], pairs: Rows
) -> None:
    write_rows([{**pair, "margin": 3.0} for pair in pairs], "pairs.jsonl")
    losses = {}
    for use in ("true", "false"):
        reward.run(job(*TINY, "train.max_steps=1", f"use_margin={use}"), Path(use))
        losses[use] = metrics(use)[0]["loss"]
    # the margins are small at the start: −log σ(m − 3) is about 3 − m where −log σ(m) is about log 2 − m / 2
    assert losses["true"] - losses["false"] == pytest.approx(math.log1p(math.exp(3)) - math.log(2), abs=0.5)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(job: Job) -> None:
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        reward.run(job(*TINY, "lora=default", f"seed={seed}"), Path(name))
    a, b, c = (Path(name, "adapter_model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_what_cannot_be_is_refused_in_a_line_each(job: Job) -> None:
    with pytest.raises(ConfigError) as caught:
        check_job(job(*TINY, "data.train_on=everything", "data.streaming=true", "early_stopping=2"))
    assert list(caught.value.problems) == [
        "data.train_on=everything has no effect: of a pair the two responses are scored, and nothing else",
        "data.streaming=true: pairs are not read as training goes; leave it out",
        "early_stopping needs held-out rows: data.eval_path or data.eval_fraction",
    ]


def test_a_reward_run_is_no_policy_and_a_policy_no_reward_run(job: Job) -> None:
    reward.run(job(*TINY), Path("run"))
    with pytest.raises(ConfigError, match=r"model.name: run is a reward model where a language model belongs"):
        check_job(job("model.name=run"))
    with pytest.raises(ModelError, match="is no reward model"):
        load_reward(ModelConfig(name="."), byte_tokenizer())
