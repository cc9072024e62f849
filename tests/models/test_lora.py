import re
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BloomConfig, BloomForCausalLM

import alignkit
from alignkit.errors import ModelError
from alignkit.models.lora import attention_layers, build_lora, check_lora
from alignkit.models.tiny import byte_tokenizer, random_model

GROUPS = Path(alignkit.__file__).parent / "conf" / "lora"
CONFIGS = {
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32},
    "llama": {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
    },
}


@pytest.fixture
def gpt2() -> torch.nn.Module:
    return random_model(CONFIGS["gpt2"], tokenizer=byte_tokenizer(), seed=0)


@pytest.fixture
def llama() -> torch.nn.Module:
    return random_model(CONFIGS["llama"], tokenizer=byte_tokenizer(), seed=0)


def adapted(model: torch.nn.Module) -> set[str]:
    """The layers of the first block that carry LoRA."""
    marks = (".lora_A.default.weight", ".0.")
    return {
        name.split(".0.", 1)[1].removesuffix(marks[0])
        for name, _ in model.named_parameters()
        if name.endswith(marks[0]) and marks[1] in name
    }


def test_attention_is_whatever_the_architecture_calls_it(gpt2: torch.nn.Module, llama: torch.nn.Module) -> None:
    assert attention_layers(gpt2) == ["attn.c_attn", "attn.c_proj"]
    assert attention_layers(llama) == [f"self_attn.{name}_proj" for name in "koqv"]
    bloom = BloomForCausalLM(BloomConfig(vocab_size=9, hidden_size=16, n_layer=1, n_head=2))
    assert attention_layers(bloom) == ["self_attention.dense", "self_attention.query_key_value"]


def test_attention_leaves_the_mlp_alone(gpt2: torch.nn.Module) -> None:
    model = get_peft_model(gpt2, build_lora({"r": 2, "target_modules": "attention"}, gpt2))
    assert adapted(model) == {"attn.c_attn", "attn.c_proj"}  # mlp.c_proj would match the bare name c_proj


def test_attention_is_the_default(llama: torch.nn.Module) -> None:
    model = get_peft_model(llama, build_lora({"r": 2}, llama))
    assert adapted(model) == {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}


@pytest.mark.parametrize(("config", "expected"), [("gpt2", True), ("llama", False)])
@pytest.mark.parametrize("targets", ["attention", "all-linear"])
def test_conv1d_is_announced_so_that_peft_has_nothing_to_warn_about(config: str, expected: bool, targets: str) -> None:
    model = random_model(CONFIGS[config], tokenizer=byte_tokenizer(), seed=0)
    lora = build_lora({"target_modules": targets}, model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        get_peft_model(model, lora)
    assert not [warning for warning in caught if "fan_in_fan_out" in str(warning.message)]
    assert lora.fan_in_fan_out is expected


@pytest.mark.parametrize("group", sorted(path.stem for path in GROUPS.glob("*.yaml") if path.stem != "none"))
@pytest.mark.parametrize("config", ["gpt2", "llama"])
def test_every_shipped_group_trains_on_every_tiny_model(group: str, config: str) -> None:
    base = random_model(CONFIGS[config], tokenizer=byte_tokenizer(), seed=0)
    model = get_peft_model(base, build_lora(yaml.safe_load((GROUPS / f"{group}.yaml").read_text()), base))
    ids = torch.arange(12).reshape(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    # B starts at zero, so the first gradient arrives there and nowhere before it
    assert all(weight.grad.abs().sum() > 0 for name, weight in model.named_parameters() if "lora_B" in name)


def test_the_default_group_is_as_promised(gpt2: torch.nn.Module) -> None:
    lora = build_lora(yaml.safe_load((GROUPS / "default.yaml").read_text()), gpt2)
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.task_type) == (16, 32, 0.1, "CAUSAL_LM")
    assert yaml.safe_load((GROUPS / "none.yaml").read_text()) == {}


@pytest.mark.parametrize(
    ("config", "targets", "problems"),
    [
        (
            "gpt2",
            ["q_proj"],
            [
                "lora.target_modules: 'q_proj' matches no linear layer of this gpt2 model; did you mean 'c_attn'? "
                "it has c_attn, c_fc, c_proj"
            ],
        ),
        (
            "gpt2",
            ["c_atn", "c_proj", "zzz"],
            [
                "lora.target_modules: 'c_atn' matches no linear layer of this gpt2 model; did you mean 'c_attn'? "
                "it has c_attn, c_fc, c_proj",
                "lora.target_modules: 'zzz' matches no linear layer of this gpt2 model; it has c_attn, c_fc, c_proj",
            ],
        ),
        (
            "llama",
            ["gate_prj"],
            [
                "lora.target_modules: 'gate_prj' matches no linear layer of this llama model; "
                "did you mean 'gate_proj'? it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
            ],
        ),
        (
            "gpt2",
            ["mlp"],
            ["lora.target_modules: 'mlp' matches no linear layer of this gpt2 model; it has c_attn, c_fc, c_proj"],
        ),
        (
            "gpt2",
            r".*\.c_atn",
            [
                r"lora.target_modules: '.*\.c_atn' matches no linear layer of this gpt2 model; did you mean 'c_attn'? "
                "it has c_attn, c_fc, c_proj"
            ],
        ),
        (
            "llama",
            "(",
            ["lora.target_modules: '(' is no regular expression: missing ), unterminated subpattern at position 0"],
        ),
        ("gpt2", ["lm_head"], ["lora.target_modules: 'lm_head' is the output layer, which LoRA cannot train here"]),
        ("llama", ".*", ["lora.target_modules: '.*' is the output layer, which LoRA cannot train here"]),
    ],
)
def test_targets_that_do_not_fit_are_named(config: str, targets: list[str] | str, problems: list[str]) -> None:
    model = random_model(CONFIGS[config], tokenizer=byte_tokenizer(), seed=0)
    with pytest.raises(ModelError) as caught:
        build_lora({"target_modules": targets}, model)
    assert list(caught.value.problems) == problems


def test_targets_that_fit_pass(llama: torch.nn.Module) -> None:
    for targets in (["q_proj", "self_attn.v_proj"], r".*\.mlp\..*_proj", ["embed_tokens"]):
        get_peft_model(llama, build_lora({"target_modules": targets}, llama)).unload()


def test_modules_to_save_must_exist(gpt2: torch.nn.Module) -> None:
    with pytest.raises(ModelError, match=r"lora.modules_to_save: 'wtte' matches no module of this model; .* 'wte'\?"):
        build_lora({"modules_to_save": ["wtte"]}, gpt2)


def test_what_peft_refuses_is_one_line(gpt2: torch.nn.Module) -> None:
    with pytest.raises(ModelError, match=r"^lora: `layers_to_transform` cannot be used when"):
        build_lora({"target_modules": ".*c_attn", "layers_to_transform": [0]}, gpt2)


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_matches_nothing_is_refused(gpt2: torch.nn.Module, key: str) -> None:
    assert build_lora({"target_modules": ["c_attn"], key: {"c_attn": 2, "h.0.attn.c_attn": 4}}, gpt2)
    assert build_lora({"target_modules": "all-linear", key: {"c_fc": 2}}, gpt2)
    for pattern, line in {
        "c_fc": "'c_fc' has no effect: it matches no layer that LoRA is put on",
        "c_atn": "'c_atn' has no effect: it matches no layer that LoRA is put on; did you mean 'c_attn'?",
        "c_attn(": "'c_attn(' is no regular expression: ",
    }.items():
        with pytest.raises(ModelError, match=f"^{re.escape(f'lora.{key}: {line}')}"):
            build_lora({"target_modules": ["c_attn"], key: {pattern: 2}}, gpt2)


def test_what_experts_that_are_parameters_cannot_have_is_named() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 50}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_local_experts": 4}
    config = AutoConfig.for_model("mixtral", **sizes, **heads)
    with pytest.raises(ModelError, match=r"^lora\.lora_dropout=0\.1: the experts of this mixtral model are"):
        check_lora({"lora_dropout": 0.1, "target_modules": "all-linear"}, AutoModelForCausalLM.from_config(config))


def test_lora_on_an_adapter_is_refused(gpt2: torch.nn.Module) -> None:
    model = get_peft_model(gpt2, build_lora({}, gpt2))
    with pytest.raises(ModelError, match=r"^lora: model\.name is an adapter already: leave lora empty"):
        build_lora({}, model)
