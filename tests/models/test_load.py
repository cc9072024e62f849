import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2Model, LlamaConfig, PreTrainedTokenizerFast, T5Config

from alignkit.choices import Dtype, Init, Quantization
from alignkit.config import ModelConfig, TemplateConfig
from alignkit.data.encode.templates import load_template
from alignkit.errors import ModelError, TemplateError
from alignkit.models.load import check_model, default_dtype, load_model, load_tokenizer, merge_problems, num_positions
from alignkit.models.skeleton import skeleton
from alignkit.models.tiny import byte_tokenizer, random_model

GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32}
TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "gpt2"
    random_model(GPT2, tokenizer=TOKENIZER, seed=1).save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return path


def refusal(**settings: object) -> tuple[str, ...]:
    with pytest.raises(ModelError) as caught:
        check_model(ModelConfig(**settings))  # type: ignore[arg-type]  # settings vary by case
    return caught.value.problems


def load(model: ModelConfig, *, trainable: bool = True) -> torch.nn.Module:
    return load_model(model, tokenizer=load_tokenizer(model), seed=0, trainable=trainable)


def test_a_random_model_reads_bytes_and_passes_the_check() -> None:
    model = ModelConfig(name="mine", init=Init.random, config=GPT2)
    check_model(model)
    assert len(load_tokenizer(model)) == 261
    assert load(model).num_parameters() == 8000


def test_the_same_draws_in_any_dtype() -> None:
    wide = load(ModelConfig(name="mine", init=Init.random, config=GPT2, dtype=Dtype.float32))
    narrow = load(ModelConfig(name="mine", init=Init.random, config=GPT2, dtype=Dtype.bfloat16))
    assert torch.equal(wide.transformer.wte.weight.bfloat16(), narrow.transformer.wte.weight)


def test_weights_come_back_as_they_were_saved(folder: Path) -> None:
    saved = random_model(GPT2, tokenizer=TOKENIZER, seed=1)
    loaded = load(ModelConfig(name=str(folder)))
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True))
    assert not loaded.training


@pytest.mark.parametrize(
    ("dtype", "trainable", "expected"),
    [
        (Dtype.auto, True, torch.float32),
        (Dtype.auto, False, default_dtype()),
        (Dtype.float32, False, torch.float32),
        (Dtype.bfloat16, True, torch.bfloat16),
        (Dtype.float16, False, torch.float16),
    ],
)
def test_the_dtype_of_the_weights(folder: Path, dtype: Dtype, trainable: bool, expected: torch.dtype) -> None:
    assert load(ModelConfig(name=str(folder), dtype=dtype), trainable=trainable).dtype is expected


@pytest.mark.parametrize("chosen", ["eager", "sdpa"])
def test_the_attention_implementation_passes_through(folder: Path, chosen: str) -> None:
    for model in (
        ModelConfig(name=str(folder), attn_implementation=chosen),
        ModelConfig(name="mine", init=Init.random, config=GPT2, attn_implementation=chosen),
    ):
        assert load(model).config._attn_implementation == chosen


def test_a_missing_extra_is_one_line(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"^model.name: .* cannot be loaded: .*[Ff]lash.?[Aa]tt") as caught:
        load(ModelConfig(name=str(folder), attn_implementation="flash_attention_2"))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_pad_fills_up_with_eos_and_does_not_grow(tmp_path: Path) -> None:
    core = Tokenizer(WordLevel({"hello": 0, "<|endoftext|>": 1}, unk_token="<|endoftext|>"))
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(ModelConfig(name=str(tmp_path)))
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("<|endoftext|>", 1, 2)


def test_a_tokenizer_without_pad_and_eos_fills_up_with_the_end_of_its_template(tmp_path: Path) -> None:
    words = {"hello": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    core = Tokenizer(WordLevel(words, unk_token="hello"))
    core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(ModelConfig(name=str(tmp_path)))
    assert tokenizer.pad_token is None
    with pytest.raises(TemplateError) as caught:
        load_template(TemplateConfig("instruction"), tokenizer)
    assert str(caught.value) == (
        "template.name=instruction: a turn ends in the tokenizer's eos token, and it has none: template=chatml ends it "
        "in <|im_end|>; or name a token as eos_token in its tokenizer_config.json"
    )


def test_a_folder_without_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model.name: the tokenizer of .* cannot be loaded: ") as caught:
        load_tokenizer(ModelConfig(name=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_backbone_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=261, bos_token_id=None, eos_token_id=None)
    model = GPT2Model(config)
    state = {name: weight for name, weight in model.state_dict().items() if name != "ln_f.weight"}
    model.save_pretrained(tmp_path, state_dict=state)
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no whole causal language model: 1 weights are missing or of another"):
        load(ModelConfig(name=str(tmp_path)))


def test_weights_of_another_shape_are_refused(folder: Path, tmp_path: Path) -> None:
    random_model(GPT2, tokenizer=TOKENIZER, seed=1).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"n_positions": 32', '"n_positions": 64'))
    with pytest.raises(ModelError, match=r"of another shape, such as transformer\.wpe\.weight"):
        load(ModelConfig(name=str(tmp_path)))


def test_an_encoder_is_refused_in_one_line(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded: Unrecognized configuration class") as caught:
        load(ModelConfig(name=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_mistakes_are_reported_together(folder: Path) -> None:
    assert refusal(name=str(folder), revision="v1", config={"n_layer": 3}, attn_implementation="spda") == (
        "model.attn_implementation: unknown 'spda'; did you mean 'sdpa'?",
        f"model.revision: {folder} is a folder, only a hub model has revisions; leave it out",
        "model.config: pretrained weights bring their own; only init=random builds from it",
    )


def test_an_attention_implementation_that_resembles_none_is_told_all() -> None:
    (problem,) = refusal(name="mine", init=Init.random, config=GPT2, attn_implementation="kernels-community/zzz")
    assert problem.startswith("model.attn_implementation: unknown 'kernels-community/zzz'; it can be eager, ")
    assert "sdpa" in problem


def test_random_weights_take_neither_revision_nor_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = refusal(name="mine", init=Init.random, config=GPT2, revision="v1", quantization=Quantization.nf4)
    assert "model.quantization: random weights cannot be quantized; leave it out" in problems
    assert "model.revision: random weights have no revision; leave it out" in problems


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_quantization_needs_a_gpu(folder: Path) -> None:
    problems = refusal(name=str(folder), quantization=Quantization.int8)
    assert "model.quantization: needs a GPU, and there is none here; leave it out" in problems


def test_quantized_weights_do_not_train(folder: Path) -> None:
    with pytest.raises(ModelError, match="quantized weights cannot train, LoRA on top of them can: lora=qlora"):
        load(ModelConfig(name=str(folder), quantization=Quantization.nf4))


def test_positions() -> None:
    assert num_positions(GPT2Config(n_positions=77)) == 77
    assert num_positions(LlamaConfig(max_position_embeddings=88)) == 88
    assert num_positions(T5Config()) is None


def test_an_adapter_is_not_merged_into_quantized_weights(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    quantized = ModelConfig(name=str(tmp_path), quantization=Quantization.nf4)
    (line,) = merge_problems(quantized, "reference.name")
    assert line.startswith("model.quantization: reference.name is an adapter, and merged into quantized weights")
    assert merge_problems(ModelConfig(name=str(tmp_path))) == []
    assert merge_problems(ModelConfig(name=str(tmp_path / "none"), quantization=Quantization.nf4)) == []


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a tokenizer of 265 tokens and the architecture of a GPT-2, without weights."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<a>", "<b>", "<c>", "<d>"])
    tokenizer.save_pretrained(tmp_path / "own")
    built = random_model({**GPT2, "n_layer": 3}, tokenizer=TOKENIZER, seed=0).config
    built.save_pretrained(tmp_path / "own")
    return tmp_path / "own"


def test_random_weights_take_tokenizer_and_architecture_of_a_folder(own: Path) -> None:
    section = ModelConfig(name=str(own), init=Init.random)
    check_model(section)
    model, tokenizer = load(section), load_tokenizer(section)
    assert tokenizer.encode("<d>") == [264]
    assert (model.config.n_layer, model.config.vocab_size, model.config.eos_token_id) == (3, 265, 258)
    assert model.name_or_path == ""  # there are no weights to come back to
    assert skeleton(section).config.to_dict() == model.config.to_dict()
    smaller = load(ModelConfig(name=str(own), init=Init.random, config={"n_layer": 1}))
    assert (smaller.config.n_layer, smaller.config.n_embd) == (1, GPT2["n_embd"])
    other = load(ModelConfig(name=str(own), init=Init.random, config=GPT2))  # it names its type: it is all there is
    assert (other.config.n_layer, other.config.vocab_size) == (GPT2["n_layer"], 265)


def test_a_vocabulary_that_the_file_makes_larger_than_the_tokenizer_stays(own: Path) -> None:
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"vocab_size": 320}))
    assert load(ModelConfig(name=str(own), init=Init.random)).config.vocab_size == 320


def test_a_folder_that_random_weights_cannot_be_built_from_says_why(own: Path, folder: Path, tmp_path: Path) -> None:
    assert refusal(name=str(own), init=Init.random, config={"n_lyer": 1}) == (
        "model.config.n_lyer: gpt2 has no such setting; did you mean 'n_layer'?",
    )
    assert refusal(name=str(folder), init=Init.random) == (
        f"model.init=random would ignore the weights in model.name={folder}: model=run loads them",
    )
    (own / "config.json").unlink()
    (problem,) = refusal(name=str(own), init=Init.random)
    assert problem.startswith("model.config: model_type is missing")
    (tmp_path / "empty").mkdir()
    assert refusal(name=str(tmp_path / "empty"), init=Init.random, config=GPT2) == (
        f"model.name: {tmp_path}/empty is a folder without a tokenizer, which a random model would take from it",
    )
