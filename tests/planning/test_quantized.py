"""The layers that stand for those of bitsandbytes, which keeps what is said here: seen in its version 0.50.2."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from alignkit.choices import Quantization
from alignkit.planning.live_memory import bytes_of, tensors_of
from alignkit.planning.plan import _num_parameters
from alignkit.planning.quantized import QuantizedLinear, quantize
from alignkit.planning.rehearsal import Models
from alignkit.planning.unfilled import allocate

LLAMA = LlamaConfig(
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False},
)


@pytest.mark.parametrize(
    ("kind", "features", "kept"),
    [
        (Quantization.nf4, (576, 192), 58_144),
        (Quantization.nf4, (2048, 8192), 8_655_940),
        (Quantization.nf4, (100, 30), 2_643),
        (Quantization.int8, (576, 192), 111_360),
        (Quantization.int8, (100, 30), 3_120),
    ],
)
def test_a_layer_has_the_bytes_of_bitsandbytes(kind: Quantization, features: tuple[int, int], kept: int) -> None:
    assert bytes_of(tensors_of(QuantizedLinear(*features, bias=None, kind=kind))) == kept


@pytest.mark.parametrize("kind", [Quantization.nf4, Quantization.int8])
def test_the_head_stays_and_a_gradient_goes_through_the_rest(kind: Quantization) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LLAMA)
    num = sum(weight.numel() for weight in model.parameters())
    quantize(model, kind)
    assert type(model.lm_head) is nn.Linear
    assert {type(layer.mlp.up_proj) for layer in model.model.layers} == {QuantizedLinear}
    assert _num_parameters(Models(model, model.lm_head)) == num
    with FakeTensorMode(allow_non_fake_inputs=True):
        allocate([model], torch.device("cpu"))
        states = model.get_input_embeddings()(torch.zeros((1, 3), dtype=torch.long))
        states.retain_grad()
        model(inputs_embeds=states).logits.sum().backward()
        assert states.grad is not None


def test_layers_that_keep_their_weights_transposed_are_turned_round() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32))
    quantize(model, Quantization.int8)
    assert model.transformer.h[0].attn.c_attn.weight.shape == (48, 16)
