"""What DeepSpeed would say when it is too late is said before."""

import importlib.util
import json
from pathlib import Path

import pytest

from alignkit.training.sharding import check_sharding, sharding_launched

GATHER = "stage3_gather_16bit_weights_on_model_save"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # as if it were installed
    return monkeypatch


def test_nothing_is_sharded_where_nothing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (sharding_launched(), check_sharding()) == (None, [])
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert (sharding_launched(), check_sharding()) == ("FSDP", [])


def test_deepspeed_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert check_sharding() == ["DeepSpeed was asked for and is not installed: pip install deepspeed"]


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
    found = check_sharding()
    assert len(found) == is_lost
    assert all(f"set zero_optimization.{GATHER} to true" in line for line in found)


def test_accelerates_own_settings_count_where_deepspeed_has_no_file(launched: pytest.MonkeyPatch) -> None:
    launched.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    assert len(check_sharding()) == 1
    launched.setenv("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "true")
    assert check_sharding() == []
