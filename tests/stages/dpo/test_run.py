"""`alignkit dpo`: the loss by value, a reference that is what the policy was, and log-probabilities that are kept."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.commands import merge
from alignkit.config import ModelConfig
from alignkit.data.encode.templates import load_template
from alignkit.data.sets.pairs import load_pairs
from alignkit.errors import ConfigError
from alignkit.jobs import DpoJob
from alignkit.launch import compose_job
from alignkit.models.load import load_model, load_tokenizer
from alignkit.models.tiny import byte_tokenizer, random_model
from alignkit.stages.dpo import run as dpo
from alignkit.stages.dpo.check import check_job
from alignkit.stages.sft import run as sft
from alignkit.training.dpo import LOSSES, DpoTrainer, check_losses

Job = Callable[..., DpoJob]
Rows = list[dict[str, Any]]
# In float32, so that values can be compared closely wherever the tests run.
FLOAT32 = ["model.dtype=float32", "train.bf16=false"]
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
LLAMA |= {"num_attention_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3}
SMALL = ["model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32"]
TINY = ["model=tiny_gpt2", *SMALL, "template=instruction", *FLOAT32]


@pytest.fixture
def job(pair_job: Callable[..., Any]) -> Job:
    return lambda *words: pair_job("dpo", "samples=0", *words)


@pytest.fixture
def sft_run(job: Job, write_rows: Callable[..., Path], pairs: Rows) -> Callable[..., str]:
    """The name of an SFT run whose policy is far from its base."""

    def train(*words: str) -> str:
        write_rows([{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs])
        basis = ["model=tiny_gpt2", *SMALL, "data.path=rows.jsonl", "samples=0", "train.learning_rate=1e-2"]
        sft.run(compose_job("sft", [*basis, "train.max_steps=8", "train.report_to=none", *words]), Path("sft"))
        return "model.name=sft"

    return train


def metrics(run_dir: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


def at_the_start(run_dir: str) -> dict[str, Any]:
    (first,) = [entry for entry in metrics(run_dir) if entry["step"] == 0]
    return first


@pytest.mark.parametrize("trained", [[], ["lora=default"]], ids=["full-sft", "lora-sft"])
@pytest.mark.parametrize("adapter", [[], ["lora=default"]], ids=["full", "lora"])
@pytest.mark.parametrize("keep", ["false", "true"], ids=["", "kept"])
def test_the_reference_is_the_policy_as_it_was(
    job: Job, sft_run: Callable[..., str], trained: list[str], adapter: list[str], keep: str
) -> None:
    if trained and adapter:
        with pytest.raises(ConfigError, match="is an adapter already"):
            check_job(job(sft_run(*trained), *adapter))
        return
    words = [sft_run(*trained), *adapter, *FLOAT32, "data.eval_fraction=0.25", f"reference.keep={keep}"]
    dpo.run(job(*words), Path("runs/dpo/a"))
    first = at_the_start("runs/dpo/a")
    assert first["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    for key in ("chosen", "rejected", "margins"):
        assert first[f"eval_rewards/{key}"] == pytest.approx(0, abs=1e-5)
    # a tie is half right, to float rounding
    assert first["eval_rewards/accuracies"] == 0.5 if keep == "false" else 0 <= first["eval_rewards/accuracies"] <= 1
    assert first["eval_logps/chosen"] == pytest.approx(of_policy("sft"), abs=1e-3)  # the SFT policy, not its base
    last = [entry for entry in metrics("runs/dpo/a") if "eval_rewards/margins" in entry][-1]
    assert last["eval_rewards/margins"] > 0


def of_policy(name: str) -> float:
    """Mean log-probability of the held-out chosen responses, by the model alone."""
    section = compose_job("dpo", ["model.name=x", "data.path=pairs.jsonl", "data.eval_fraction=0.25"])
    tokenizer = load_tokenizer(ModelConfig(name=name))
    model = load_model(ModelConfig(name=name, dtype="float32"), tokenizer=tokenizer, seed=0, trainable=False)
    template = load_template(section.template, tokenizer)
    held_out = load_pairs(section.data, template, tokenizer, max_length=256, seed=0).evals["eval"].dataset
    sums = []
    for prompt, chosen in zip(held_out["prompt_ids"], held_out["chosen_ids"], strict=True):
        logits = model(input_ids=torch.tensor([[*prompt, *chosen]])).logits[0, len(prompt) - 1 : -1]
        sums.append(logits.log_softmax(-1).gather(1, torch.tensor(chosen)[:, None]).sum().item())
    return sum(sums) / len(sums)


@pytest.mark.parametrize("batching", ["packed", "grouped"])
def test_the_layout_of_a_batch_changes_nothing_but_rounding(job: Job, batching: str) -> None:
    words = [*TINY, "data.shuffle=false", "train.max_steps=2", "train.per_device_train_batch_size=32"]
    dpo.run(job(*words, f"data.batching={batching}"), Path(batching))
    dpo.run(job(*words, "data.batching=padded"), Path("reference"))
    for first, second in zip(metrics(batching)[:2], metrics("reference")[:2], strict=True):
        for key in ("loss", "grad_norm", "logps/chosen", "logps/rejected", "rewards/margins", "entropy"):
            assert first[key] == pytest.approx(second[key], rel=1e-4, abs=1e-5)


def test_the_loss_of_two_pairs_is_rafailov_s(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def compute(self: DpoTrainer, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs = {key: value[:2] for key, value in inputs.items()}  # two pairs on two lines
        chosen, rejected = self._completions(model, inputs).log_probs.sum(1).detach().chunk(2)
        references = {"ref_chosen_logps": chosen - torch.tensor([1.0, 0.0]), "ref_rejected_logps": rejected - 0.5}
        found.append(upstream(self, model, {**inputs, **references}).item())
        return upstream(self, model, inputs, *args, **kwargs)

    upstream = DpoTrainer.compute_loss
    monkeypatch.setattr(DpoTrainer, "compute_loss", compute)
    dpo.run(job(*TINY, "train.max_steps=1", "train.beta=2.0"), Path("run"))
    # differences of log-ratios 0.5 and −0.5, times β: −log σ(1) = 0.3133, −log σ(−1) = 1.3133
    assert found[0] == pytest.approx((0.31326169 + 1.31326169) / 2, abs=1e-5)


@pytest.mark.parametrize("loss", [*LOSSES, "[sigmoid,sft]"])
def test_every_loss_of_upstream_trains(job: Job, loss: str) -> None:
    more = ["train.label_smoothing=1e-3"] if loss in ("exo_pair",) else []
    dpo.run(job(*TINY, "train.max_steps=1", f"train.loss_type={loss}", *more), Path("run"))
    assert math.isfinite(metrics("run")[0]["loss"])


def test_kept_log_probabilities_are_found_again_until_a_byte_changes(
    job: Job, write_rows: Callable[..., Path], pairs: Rows
) -> None:
    def kept(name: str, *words: str) -> set[str]:
        dpo.run(job(*TINY, "train.max_steps=1", "reference.keep=true", *words), Path("runs/dpo", name))
        return {path.name for path in Path("runs/dpo/.reference").iterdir()}

    first = kept("a")
    assert len(first) == 1
    assert kept("b", "train.learning_rate=1e-4") == first  # another run, the same reference and pairs
    assert "kept in runs/dpo/.reference/" in Path("runs/dpo/b/log.txt").read_text()
    assert len(kept("c", "seed=1")) == 2  # other random weights
    assert len(kept("d", "template=chatml")) == 3
    assert len(kept("e", "data.max_length=62", "data.overlength=keep_start")) == 4
    write_rows([{**pairs[0], "chosen": pairs[0]["chosen"] + "!"}, *pairs[1:]], "pairs.jsonl")
    assert len(kept("f")) == 5


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "rope_parameters", {"rope_theta": 10.0, "rope_type": "default"}),
        ("config.json", "rms_norm_eps", 0.5),
        ("adapter_config.json", "lora_alpha", 512),
    ],
)
def test_kept_log_probabilities_are_of_what_the_forward_pass_reads(
    job: Job, sft_run: Callable[..., str], file: str, key: str, value: Any
) -> None:
    if file == "adapter_config.json":
        sft_run("lora=default", "train.max_steps=1")
    else:
        random_model(LLAMA, tokenizer=byte_tokenizer(), seed=0).save_pretrained("sft")
        byte_tokenizer().save_pretrained("sft")
    words = ["model.name=sft", "template=instruction", "train.max_steps=1", "reference.keep=true", *FLOAT32]
    first_loss = {}
    for run in ("before", "after"):
        dpo.run(job(*words), Path("runs/dpo", run))
        first_loss[run] = metrics(f"runs/dpo/{run}")[0]["loss"]
        config = json.loads(Path("sft", file).read_text())
        assert key in config
        Path("sft", file).write_text(json.dumps(config | {key: value}))
    assert first_loss == {run: pytest.approx(math.log(2), abs=1e-5) for run in first_loss}


def test_kept_log_probabilities_train_as_fresh_ones(job: Job) -> None:
    for keep in ("true", "false"):
        dpo.run(job(*TINY, f"reference.keep={keep}"), Path("runs/dpo", keep))
    for kept, fresh in zip(metrics("runs/dpo/true"), metrics("runs/dpo/false"), strict=True):
        if "loss" in kept:
            assert kept["loss"] == pytest.approx(fresh["loss"], abs=1e-4)


def test_another_model_can_be_the_reference(job: Job, sft_run: Callable[..., str]) -> None:
    sft_run()
    dpo.run(job(*TINY, "reference.name=sft", "data.eval_fraction=0.25"), Path("run"))
    first = at_the_start("run")
    wanted = 0.1 * (first["eval_logps/chosen"] - of_policy("sft"))
    assert first["eval_rewards/chosen"] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(("policy", "new"), [("adapter", []), ("merged", []), ("merged", ["lora=default"])])
def test_a_named_reference_that_is_the_policy_gives_what_the_policy_gives(
    job: Job, sft_run: Callable[..., str], policy: str, new: list[str]
) -> None:
    name = sft_run("lora=default", "lora.r=32", "train.learning_rate=3e-2", *FLOAT32)
    if policy == "merged":
        merge.run(compose_job("merge", [name, "model.dtype=float32"]), out=Path("merged"))
        name = "model.name=merged"
    words = ["reference.name=sft", "data.eval_fraction=0.25", "model.dtype=auto", "train.bf16=true", "template=native"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alignkit.models.load.default_dtype", lambda: torch.bfloat16)
        dpo.run(job(name, *words, *new), Path("run"))
    first = at_the_start("run")
    for key in ("chosen", "rejected", "margins"):
        assert first[f"eval_rewards/{key}"] == pytest.approx(0, abs=1e-6)


def test_lora_holds_one_backbone(job: Job, sft_run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[DpoTrainer] = []
    monkeypatch.setattr(dpo, "train", lambda trainer, **_: held.append(trainer))
    sft_run("lora=default")
    for name, words in {"fresh": [*TINY, "lora=default"], "continued": ["model.name=sft"]}.items():
        dpo.run(job(*words), Path(name))
        trainer = held.pop()
        assert trainer.ref_model is None
        sizes = {key: weight.numel() for key, weight in trainer.model.named_parameters()}
        frozen_base = sum(size for key, size in sizes.items() if "lora_" not in key)
        assert sum(sizes.values()) < 1.2 * frozen_base


def test_a_chosen_response_that_becomes_less_likely_is_said(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    dpo.run(job(*TINY, "data.eval_fraction=0.25", "train.learning_rate=3e-2", "train.max_steps=12"), Path("run"))
    figures = json.loads(Path("run/run.json").read_text())["result"]["eval_logps/chosen"]
    said = "the chosen responses became less likely" in Path("run/log.txt").read_text()
    assert said == (figures["last"] < figures["first"])


@pytest.mark.parametrize(
    ("train", "line"),
    [
        ({"loss_type": "sigmod"}, "train.loss_type: unknown 'sigmod'; did you mean 'sigmoid'?"),
        ({"loss_type": []}, "train.loss_type is empty: name at least one loss"),
        (
            {"label_smoothing": 0.1},
            "train.label_smoothing has no effect on sigmoid: it belongs to aot, aot_unpaired, exo_pair, robust",
        ),
        ({"loss_type": "exo_pair"}, "train.label_smoothing: exo_pair needs one above 0, such as 1e-3"),
        (
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]},
            "train.loss_weights has 1 numbers for 2 losses: give one for each",
        ),
        (
            {"loss_type": "aot", "f_divergence_type": "forward_kl"},
            "train.f_divergence_type=forward_kl is not defined for aot",
        ),
        (
            {"f_alpha_divergence_coef": 0.3},
            "train.f_alpha_divergence_coef has no effect without f_divergence_type=alpha_divergence",
        ),
    ],
)
def test_a_loss_that_upstream_would_refuse_late_or_ignore(train: dict[str, Any], line: str) -> None:
    assert check_losses(train) == [line]


def test_a_reference_with_another_vocabulary_is_refused(job: Job, sft_run: Callable[..., str]) -> None:
    sft_run()
    path = Path("sft/tokenizer.json")
    content = json.loads(path.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<|im_end|>"]
    path.write_text(json.dumps(content))
    config = Path("sft/tokenizer_config.json")
    config.write_text(config.read_text().replace("<|im_end|>", "<|im_over|>"))
    with pytest.raises(ConfigError, match=r"reference.name: sft has another vocabulary than tiny_gpt2"):
        check_job(job(*TINY, "reference.name=sft"))


def test_what_is_longer_counts_less_with_ld_alpha_for_policy_and_reference_alike(job: Job) -> None:
    dpo.run(job(*TINY, "data.eval_fraction=0.25", "train.ld_alpha=0.5"), Path("run"))
    first = at_the_start("run")
    assert first["eval_rewards/chosen"] == pytest.approx(0, abs=1e-6)
    assert first["eval_logps/chosen"] < 0


def test_the_same_seed_gives_the_same_bits(job: Job) -> None:
    for name in "ab":
        dpo.run(job(*TINY, "lora=default"), Path(name))
    assert Path("a/adapter_model.safetensors").read_bytes() == Path("b/adapter_model.safetensors").read_bytes()
