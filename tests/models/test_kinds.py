"""What is no causal language model is called what it is, with what to take instead."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.config import ModelConfig
from alignkit.models.source import ModelSource, near_models, source_problems


def told(name: Path | str) -> str:
    (line,) = source_problems(ModelSource.of(ModelConfig(str(name))))
    assert line.startswith(f"model.name: {name} is ") or line.startswith(f"model.name: {name} h")
    return line.removeprefix(f"model.name: {name} ")


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "is a masked language model"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "is an encoder, BertModel"),
        ({"model_type": "gpt2", "architectures": ["GPT2ForTokenClassification"]}, "is a classifier of tokens"),
        ({"model_type": "bert", "architectures": ["BertForSequenceClassification"]}, "is a text classifier"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "is an encoder-decoder, T5For"),
        ({"architectures": ["WhisperForConditionalGeneration"], "is_encoder_decoder": True}, "is an encoder-decoder"),
        ({"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.30"}, "is a part of a diffusion pipeline"),
    ],
)
def test_a_configuration_of_something_else(tmp_path: Path, config: dict[str, Any], what: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert told(tmp_path).startswith(what)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["model_index.json"], "is a diffusion pipeline"),
        (["config.json", "modules.json"], "is an embedding model of sentence-transformers"),
        (["llama-q4.gguf"], "holds a GGUF file, llama-q4.gguf, which is quantized for llama.cpp"),
        (["tokenizer.json"], "holds a tokenizer and no model"),
        (["model.safetensors"], "has weights, model.safetensors, and no config.json"),
    ],
)
def test_a_folder_of_something_else(tmp_path: Path, names: list[str], what: str) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    assert told(tmp_path).startswith(what)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    for name, what in (("a.gguf", "is a GGUF file"), ("a.bin", "is a file in the pickle format, which can run code")):
        (tmp_path / name).touch()
        assert told(tmp_path / name).startswith(what)


def test_a_decoder_in_the_architecture_of_an_encoder_may_train(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "is_decoder": true}')
    assert told(tmp_path) == "has no weights, no *.safetensors file"


def test_a_run_is_guessed_from_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("sft/s1", "dpo/s1", "sft/tuned"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "run.json").write_text("{}")
    assert near_models("tuned") == "; did you mean 'runs/sft/tuned'?"
    assert near_models("sft/tuned") == "; did you mean 'runs/sft/tuned'?"
    assert near_models("runs/dpo/tuned") == "; did you mean 'runs/sft/tuned'?"
    assert near_models("tund") == "; did you mean 'runs/sft/tuned'?"
    assert near_models("runs/sft/tuned-2") == "; did you mean 'runs/sft/tuned'?"  # as it is to be typed
    assert near_models("s1") == "; did you mean 'runs/dpo/s1' or 'runs/sft/s1'?"
    assert near_models("elsewhere") == ""
