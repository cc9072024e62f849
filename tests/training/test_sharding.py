"""What FSDP would pass over in silence, and DeepSpeed say when it is too late, is said before."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from alignkit.choices import Quantization
from alignkit.training import sharding
from alignkit.training.sharding import check_sharding, sharding_asked

GATHER = "stage3_gather_16bit_weights_on_model_save"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # as if it were installed
    return monkeypatch


def test_nothing_is_sharded_where_nothing_says_so() -> None:
    assert (sharding_asked({}), check_sharding({}, Quantization.nf4)) == (None, [])


@pytest.fixture
def fsdp(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sharding, "has_gpu", lambda train: True)
    return monkeypatch


def test_fsdp_that_shards_is_let_pass(fsdp: pytest.MonkeyPatch) -> None:
    assert (sharding_asked({}), check_sharding({}, Quantization.none)) == ("FSDP", [])
    fsdp.delenv("ACCELERATE_USE_FSDP")
    assert (sharding_asked({"fsdp": True}), check_sharding({"fsdp": True}, Quantization.none)) == ("FSDP", [])


def test_fsdp_that_would_be_left_off_in_silence_is_named(fsdp: pytest.MonkeyPatch) -> None:
    fsdp.undo()
    for number, asked in enumerate(({"fsdp": True}, {"fsdp": True, "use_cpu": True})):
        fsdp.setattr(torch.accelerator, "is_available", lambda number=number: bool(number))
        (line,) = check_sharding(asked, Quantization.none)
        assert line.startswith("FSDP: on a CPU no weights would be sharded: launch without it")
    (line,) = check_sharding({"fsdp": True}, Quantization.none)
    assert line.startswith("FSDP: one process shards nothing: start several")


@pytest.mark.parametrize("config", [{"version": 1}, {"fsdp_version": "1"}, "fsdp.json"])
def test_the_first_version_of_fsdp_and_quantized_weights_are_refused(
    fsdp: pytest.MonkeyPatch, tmp_path: Path, config: dict[str, object] | str
) -> None:
    fsdp.chdir(tmp_path)
    Path("fsdp.json").write_text('{"fsdp_version": 1}')
    version, quantized = check_sharding({"fsdp": True, "fsdp_config": config}, Quantization.nf4)
    assert version.startswith("FSDP version 1 is not supported: take fsdp_version: 2")
    assert quantized.startswith("model.quantization=nf4: FSDP would keep the quantized weights whole in every process")
    fsdp.delenv("FSDP_VERSION")  # accelerate's default
    assert check_sharding({}, Quantization.none) == [version]


def test_deepspeed_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert check_sharding({}, Quantization.none) == [
        "DeepSpeed was asked for and is not installed: pip install deepspeed"
    ]


@pytest.mark.parametrize(
    ("zero", "is_lost"),
    [
        ({"stage": 2}, False),
        ({"stage": 3}, True),
        ({"stage": 3, GATHER: False}, True),
        ({"stage": 3, GATHER: True}, False),
        ({"stage": 3, GATHER: "auto"}, True),
    ],
)
def test_weights_that_deepspeed_would_not_give_back(
    launched: pytest.MonkeyPatch, tmp_path: Path, zero: dict[str, object], is_lost: bool
) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": zero}))
    launched.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "ds.json"))
    found = check_sharding({}, Quantization.none)
    assert len(found) == is_lost
    assert all(f"set zero_optimization.{GATHER} to true" in line for line in found)


def test_accelerates_own_settings_count_where_deepspeed_has_no_file(launched: pytest.MonkeyPatch) -> None:
    launched.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    assert len(check_sharding({}, Quantization.none)) == 1
    launched.setenv("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "true")
    assert check_sharding({}, Quantization.none) == []
