import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoTokenizer

from alignkit.choices import Dtype, Init
from alignkit.config import ModelConfig
from alignkit.models.load import check_model, load_model, load_tokenizer
from alignkit.models.lora import build_lora
from alignkit.models.save import save_model

JINJA = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
END = 260  # <|im_end|>
RANDOM = ModelConfig(
    name="tiny",
    init=Init.random,
    dtype=Dtype.float32,
    config={"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32},
)
IDS = torch.arange(40, 52).reshape(2, 6)


def load(model: ModelConfig | Path, *, trainable: bool = True) -> torch.nn.Module:
    config = ModelConfig(name=str(model), dtype=Dtype.float32) if isinstance(model, Path) else model
    check_model(config)
    return load_model(config, tokenizer=load_tokenizer(config), seed=3, trainable=trainable)


def with_lora(base: torch.nn.Module) -> PeftModel:
    """LoRA that has learned something: B starts at zero, where an adapter that got lost would not be missed."""
    model = get_peft_model(base, build_lora({"r": 2, "target_modules": "attention"}, base))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight)
    return model.eval()


def save(model: torch.nn.Module, out_dir: Path, **settings: object) -> None:
    save_model(model, load_tokenizer(RANDOM), out_dir, jinja=JINJA, stop_ids=[END], **settings)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_plain_transformers_and_peft_load_a_run_from_anywhere(tmp_path: Path) -> None:
    full, adapter = load(RANDOM), with_lora(load(RANDOM))
    assert not torch.equal(logits(adapter), logits(full))
    save(full, tmp_path / "full")
    save(adapter, tmp_path / "adapter")
    code = f"""
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM
found = {{}}
plain, peft = AutoModelForCausalLM, AutoPeftModelForCausalLM
for kind, run in ((plain, "full"), (plain, "adapter"), (peft, "adapter")):
    model = kind.from_pretrained({str(tmp_path)!r} + "/" + run, dtype=torch.float32).eval()
    with torch.no_grad():
        found[kind.__name__ + " " + run] = model(input_ids=torch.arange(40, 52).reshape(2, 6)).logits
torch.save(found, "logits.pt")
"""
    (tmp_path / "elsewhere").mkdir()
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "elsewhere", check=True, env=os.environ)
    found = torch.load(tmp_path / "elsewhere" / "logits.pt")
    assert torch.equal(found["AutoModelForCausalLM full"], logits(full))
    assert torch.equal(found["AutoModelForCausalLM adapter"], logits(adapter))
    assert torch.equal(found["AutoPeftModelForCausalLM adapter"], logits(adapter))


def test_full_weights_come_back_as_they_were(tmp_path: Path) -> None:
    model = load(RANDOM)
    save(model, tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_saving_an_adapter_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = with_lora(load(RANDOM))
    before = logits(model)
    save(model, tmp_path / "run")
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(load(tmp_path / "run" / "base")), logits(load(RANDOM)))


def test_a_moved_run_still_loads_with_us(tmp_path: Path) -> None:
    model = with_lora(load(RANDOM))
    save(model, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    loaded = load(tmp_path / "moved", trainable=False)
    assert torch.equal(logits(loaded), logits(model))
    assert not [name for name, weight in loaded.named_parameters() if weight.requires_grad]


def test_an_adapter_goes_on_training_on_the_same_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(load(RANDOM), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    save(with_lora(load(Path("base"))), tmp_path / "first")  # a relative path, as on a command line
    again = load(tmp_path / "first")
    trainable = [name for name, weight in again.named_parameters() if weight.requires_grad]
    assert len(trainable) == 8  # A and B of c_attn and c_proj in two blocks
    assert all("lora_" in name for name in trainable)
    save(again, tmp_path / "second")
    for run in ("first", "second"):
        config = json.loads((tmp_path / run / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(tmp_path / "base")
        assert not (tmp_path / run / "base").exists()
    assert torch.equal(logits(load(tmp_path / "second")), logits(again))


def test_an_adapter_of_a_hub_model_names_its_commit(tmp_path: Path) -> None:
    base = load(RANDOM)
    base.name_or_path = "org/model"
    base.config._commit_hash = "f" * 40
    save(with_lora(base), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/model", "f" * 40)


def test_only_the_adapter_is_written_beside_the_base(tmp_path: Path) -> None:
    save(with_lora(load(RANDOM)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("lora", [False, True])
def test_weights_may_be_read_by_whoever_may_read_the_rest(lora: bool, tmp_path: Path) -> None:
    save(with_lora(load(RANDOM)) if lora else load(RANDOM), tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}
    assert not [path.name for path in files if path.suffix in (".bin", ".pt", ".pth")]


@pytest.mark.parametrize("lora", [False, True])
def test_stop_ids_keep_the_models_own_and_gain_the_trained_end(lora: bool, tmp_path: Path) -> None:
    model = load(RANDOM)
    model.generation_config.eos_token_id = [258, 13]
    save(with_lora(model) if lora else model, tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert (saved["eos_token_id"], saved["pad_token_id"]) == ([258, 13, END], 256)
    assert not saved.get("_from_model_config")


def test_sampling_settings_beside_greedy_decoding_do_not_stop_the_save(tmp_path: Path) -> None:
    model = load(RANDOM)
    model.generation_config.temperature = 0.6
    model.generation_config.top_p = 0.9
    save(model, tmp_path / "greedy")
    assert "temperature" not in json.loads((tmp_path / "greedy" / "generation_config.json").read_text())
    model.generation_config.update(do_sample=True, temperature=0.6)
    save(model, tmp_path / "drawn")
    assert json.loads((tmp_path / "drawn" / "generation_config.json").read_text())["temperature"] == 0.6


@pytest.mark.parametrize("lora", [False, True])
def test_the_template_goes_with_the_tokenizer(lora: bool, tmp_path: Path) -> None:
    save(with_lora(load(RANDOM)) if lora else load(RANDOM), tmp_path)
    assert load_tokenizer(ModelConfig(name=str(tmp_path))).chat_template == JINJA


def test_the_last_batch_leaves_no_trace_in_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(RANDOM)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    save_model(load(RANDOM), tokenizer, tmp_path, jinja=JINJA, stop_ids=[END])
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert (saved["padding"], saved["truncation"]) == (None, None)


def test_the_way_a_tokenizer_was_loaded_leaves_no_trace_in_it(tmp_path: Path) -> None:
    save(load(RANDOM), tmp_path)
    first = (tmp_path / "tokenizer_config.json").read_text()
    for offline in (False, True):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=offline)
        save_model(load(RANDOM), tokenizer, tmp_path, jinja=JINJA, stop_ids=[END])
        assert (tmp_path / "tokenizer_config.json").read_text() == first


def test_gathered_weights_are_what_is_written(tmp_path: Path) -> None:
    model = load(RANDOM)
    gathered = {name: weight + 1 for name, weight in model.state_dict().items()}
    save(model, tmp_path, state_dict=dict(gathered))
    wanted = gathered["transformer.ln_f.weight"]
    assert torch.equal(load(tmp_path).transformer.ln_f.weight, wanted)


def test_the_tokenizer_of_an_adapter_without_one_is_its_bases(tmp_path: Path) -> None:
    save(with_lora(load(RANDOM)), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).unlink()
    assert len(load_tokenizer(ModelConfig(name=str(tmp_path)))) == 261
