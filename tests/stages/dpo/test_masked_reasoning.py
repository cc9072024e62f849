"""`data.train_reasoning=false` in DPO: every loss and figure is of the tokens behind the reasoning alone."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from trl import DPOTrainer

from alignkit.config import ModelConfig
from alignkit.data.batches.pair_batching import pairs_of
from alignkit.models.load import load_model, load_tokenizer
from alignkit.stages.dpo import run as dpo
from alignkit.training.dpo import LOSSES, DpoTrainer

EOS = 258  # of the byte tokenizer; ids below 256 are bytes
TINY = "model=tiny_gpt2"
WORDS = ["template=instruction", "model.dtype=float32", "train.bf16=false", "samples=0"]
WORDS += ["data.reasoning=inline", "data.train_reasoning=false", "train.per_device_train_batch_size=32"]
FIGURES = ["logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy"]
FIGURES += ["rewards/chosen", "rewards/rejected", "rewards/margins"]


@pytest.fixture
def pairs() -> list[dict[str, Any]]:
    """Pairs whose thoughts differ in length; one response has none."""

    def says(words: str, thought: str) -> dict[str, str]:
        return {"role": "assistant", "content": words, "reasoning_content": thought}

    return [
        {"prompt": f"Say {i}.", "chosen": [says(f"{i}!", "hm" * i)], "rejected": [says("no" * (1 + i % 2), "eh")]}
        for i in range(8)
    ]


@pytest.fixture
def job(pair_job: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *words: pair_job("dpo", *WORDS, "train.max_steps=1", *words)


def by_hand(pair: dict[str, Any], side: str) -> tuple[list[int], list[int]]:
    """What stands before the kept tokens of a side, and these."""
    ((message,), prompt) = pair[side], f"### Instruction:\n{pair['prompt']}\n\n### Response:\n"
    thought = message["reasoning_content"]
    inline = f"<think>\n{thought}\n</think>\n\n" if thought else ""
    return [*f"{prompt}{inline}".encode()], [*message["content"].encode(), EOS]


def scored(model: Any, pairs: list[dict[str, Any]]) -> SimpleNamespace:
    """What TRL's losses look at, each side alone and of its kept tokens alone, [2 B, longest]."""
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in ("log_probs", "entropy", "mean_logits", "is_top1")}
    for side in ("chosen", "rejected"):
        for pair in pairs:
            before, kept = by_hand(pair, side)
            logits = model(input_ids=torch.tensor([[*before, *kept]])).logits[0, len(before) - 1 : -1]
            log_probs, targets = logits.log_softmax(-1), torch.tensor(kept)
            rows["log_probs"].append(log_probs.gather(1, targets[:, None])[:, 0])
            rows["entropy"].append(-(log_probs.exp() * log_probs).sum(-1))
            rows["mean_logits"].append(logits.mean(-1))
            rows["is_top1"].append(logits.argmax(-1) == targets)
    mask = pad_sequence([torch.ones(len(row)) for row in rows["log_probs"]], batch_first=True).bool()
    laid = {name: pad_sequence(of_rows, batch_first=True) for name, of_rows in rows.items()}
    return SimpleNamespace(mask=mask, aux_loss=None, **laid)


@pytest.mark.parametrize("batching", ["packed", "grouped", "padded"])
def test_every_loss_and_figure_is_of_the_kept_tokens(
    job: Callable[..., Any], pairs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, batching: str
) -> None:
    compared = []

    def compare(trainer: Any, model: Any, inputs: dict[str, Any]) -> None:
        num = trainer.num_pairs(inputs)
        asked = [bytes(prompt).decode() for _, prompt, *_ in pairs_of({**inputs, "row_index": torch.arange(num)})]
        alone = scored(model, [next(pair for pair in pairs if pair["prompt"] in prompt) for prompt in asked])
        for ld_alpha in (None, 0.5):
            trainer.ld_alpha = ld_alpha
            mask = torch.nn.functional.pad(alone.mask.long(), (1, 0))
            reference = torch.linspace(-9, -2, 2 * num)
            references = {"ref_chosen_logps": reference[:num], "ref_rejected_logps": reference[num:]}
            laid = {"input_ids": mask * 0, "attention_mask": mask, "completion_mask": mask, **references}
            for loss in LOSSES:
                trainer.loss_types, trainer.loss_weights, trainer.label_smoothing = [loss], [1.0], 0.1
                trainer._figures["eval"].clear()
                ours = upstream(trainer, model, {**inputs, **references})
                sums = trainer._figures["eval"]
                figures = {name: sums[name][0] / sums[name][1] for name in FIGURES}
                theirs = DPOTrainer._compute_loss(trainer, lambda **_: alone, laid, False)
                assert ours.item() == pytest.approx(theirs.item(), rel=1e-4, abs=1e-5), loss
                wanted = {name: trainer._metrics["eval"][name][-1] for name in FIGURES}
                assert figures == pytest.approx(wanted, rel=1e-4, abs=1e-5), loss
                compared.append(loss)
        trainer.ld_alpha = None
        chosen, rejected = trainer.reference_log_probs(inputs)  # before the first step the policy is its reference
        assert torch.allclose(torch.cat([chosen, rejected]), alone.log_probs.sum(1), atol=1e-4)

    def compute(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if not compared:
            model.eval()
            with torch.no_grad():
                compare(self, model, inputs)
            model.train()
        return upstream(self, model, inputs, *args, **kwargs)

    upstream = DpoTrainer.compute_loss
    monkeypatch.setattr(DpoTrainer, "compute_loss", compute)
    dpo.run(job(TINY, f"data.batching={batching}", "train.loss_type=sigmoid"), Path("run"))
    assert compared == [*LOSSES, *LOSSES]


def test_kept_reference_log_probabilities_are_of_the_kept_tokens(
    job: Callable[..., Any], pairs: list[dict[str, Any]]
) -> None:
    dpo.run(job(TINY), Path("start"))
    kept = {}
    for name in ("false", "true"):
        words = ["model=run", "model.name=start", "reference.keep=true", f"data.train_reasoning={name}"]
        dpo.run(job(*words), Path("runs/dpo", name))
        kept[name] = json.loads(Path("runs/dpo", name, "metrics.jsonl").read_text().splitlines()[0])
    assert len(list(Path("runs/dpo/.reference").iterdir())) == 2
    tokenizer = load_tokenizer(ModelConfig(name="start"))
    model = load_model(ModelConfig(name="start", dtype="float32"), tokenizer=tokenizer, seed=0, trainable=False)
    with torch.no_grad():
        chosen, _ = scored(model, pairs).log_probs.sum(1).chunk(2)
    assert kept["false"]["logps/chosen"] == pytest.approx(chosen.mean().item(), abs=1e-3)
    assert kept["false"]["rewards/chosen"] == pytest.approx(0, abs=1e-4)
    assert kept["true"]["logps/chosen"] < kept["false"]["logps/chosen"] - 10
