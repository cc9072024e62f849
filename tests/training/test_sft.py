"""Our SFT trainer against TRL's own, on the same batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from trl import SFTConfig
from trl import SFTTrainer as UpstreamTrainer

from alignkit.data.batches.batching import Collator
from alignkit.models.tiny import byte_tokenizer
from alignkit.training.sft import SftTrainer

TOKENIZER = byte_tokenizer()
VOCABULARY = len(TOKENIZER)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
LENGTHS = (5, 9, 12, 7)


def rows() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(250, (length,), generator=generator).tolist() for length in LENGTHS]
    labels = [[-100] * 3 + row[3:] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels, "row_index": list(range(len(ids)))})


def build(run_dir: Path, model: Any, *, packed: bool = False, lora: bool = False, **settings: Any) -> SftTrainer:
    args = SFTConfig(
        str(run_dir),
        use_cpu=True,
        bf16=settings.pop("bf16", False),
        report_to="none",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=settings.pop("gradient_checkpointing", False),
        remove_unused_columns=False,
        **settings,
    )
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    return SftTrainer(
        model=model,
        args=args,
        train_dataset=rows(),
        processing_class=TOKENIZER,
        data_collator=Collator(pad_id=TOKENIZER.pad_token_id, packed=packed),
        train_order=SequentialSampler,
        eval_order=SequentialSampler,
        peft_config=adapter if lora else None,
    )


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    rates = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=2, **rates))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.2))


def loss_and_gradients(trainer: SftTrainer, compute: Any, num_items: int | None) -> tuple[Any, dict[str, Any]]:
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(LENGTHS))])
    batch.pop("row_index")
    trainer.model.train()
    trainer.model.zero_grad()
    loss = compute(trainer, trainer.model, dict(batch), num_items_in_batch=num_items and torch.tensor(num_items))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(
    ("make", "lora"), [(gpt2, False), (llama, False), (llama, True)], ids=["gpt2", "llama", "lora"]
)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_loss_and_gradients_are_upstreams(
    tmp_path: Path, make: Any, lora: bool, packed: bool, checkpointing: bool
) -> None:
    trainer = build(tmp_path, make(), packed=packed, lora=lora, gradient_checkpointing=checkpointing)
    if checkpointing:
        trainer.model.gradient_checkpointing_enable()
    assert trainer._own_head
    ours = loss_and_gradients(trainer, SftTrainer.compute_loss, num_items=40)
    theirs = loss_and_gradients(trainer, UpstreamTrainer.compute_loss, num_items=40)
    assert ours[1].keys() == theirs[1].keys() != set()
    torch.testing.assert_close(ours, theirs)
    mean = loss_and_gradients(trainer, SftTrainer.compute_loss, num_items=None)[0]
    assert mean.item() == pytest.approx(ours[0].item() * 40 / (sum(LENGTHS) - 3 * len(LENGTHS)), rel=1e-6)


def test_autocast_rounds_where_upstream_rounds(tmp_path: Path) -> None:
    trainer = build(tmp_path, llama(), bf16=True)
    trainer.model = trainer.accelerator.prepare(trainer.model)
    ours = loss_and_gradients(trainer, SftTrainer.compute_loss, num_items=40)
    theirs = loss_and_gradients(trainer, UpstreamTrainer.compute_loss, num_items=40)
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=2**-8)
    assert ours[1]["model.embed_tokens.weight"].dtype == torch.float32


def test_where_the_head_is_not_plain_the_loss_is_upstreams_own(tmp_path: Path) -> None:
    model = Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=1.0))
    trainer = build(tmp_path, model)
    assert not trainer._own_head


@pytest.mark.parametrize(
    "settings", [{"loss_type": "dft"}, {"label_smoothing_factor": 0.1}], ids=["another loss", "smoothing"]
)
def test_where_another_loss_is_asked_for_it_is_upstreams_own(tmp_path: Path, settings: dict[str, Any]) -> None:
    trainer = build(tmp_path, llama(), **settings)
    ours = loss_and_gradients(trainer, SftTrainer.compute_loss, num_items=40)
    theirs = loss_and_gradients(trainer, UpstreamTrainer.compute_loss, num_items=40)
    torch.testing.assert_close(ours, theirs)


def mixture() -> MixtralForCausalLM:
    torch.manual_seed(0)
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.5}
    return MixtralForCausalLM(MixtralConfig(**SIZES, **experts, initializer_range=0.2))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_router_of_a_mixture_is_scored_on_rows_and_not_in_held_out_losses(
    tmp_path: Path, packed: bool, lora: bool
) -> None:
    trainer = build(tmp_path, mixture(), packed=packed, lora=lora, per_device_eval_batch_size=3)
    model: Any = trainer.model
    filler = {"input_ids": [0, 0], "labels": [-100, -100], "row_index": -1}
    data = Dataset.from_list([*rows(), filler, filler])
    logits, routers, labels = [], [], []
    with torch.no_grad():
        for row in rows():
            alone = model.eval()(input_ids=torch.tensor([row["input_ids"]]), output_router_logits=True, use_cache=False)
            logits.append(alone.logits[0, :-1])
            labels += row["labels"][1:]
            routers.append(alone.router_logits)
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.tensor(labels))
    balance = load_balancing_loss_func(tuple(torch.cat(layer) for layer in zip(*routers, strict=True)), 4, 2)
    assert trainer.evaluate(data)["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)

    batch = trainer.data_collator(list(data))
    batch.pop("row_index")
    loss = trainer.compute_loss(model.train(), dict(batch))
    assert trainer._metrics["train"]["aux_loss"] == pytest.approx([balance.item()], rel=1e-5)
    assert loss.item() == pytest.approx((expected + 0.5 * balance).item(), rel=1e-5)
    loss.backward()
