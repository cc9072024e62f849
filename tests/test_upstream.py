"""The pass-through to upstream's argument classes: names read from source must be the names that exist."""

import dataclasses

import peft
import pytest
import trl

from alignkit import upstream
from alignkit.errors import ConfigError
from alignkit.upstream import LORA_CONFIG, LORA_OWNED, SFT_CONFIG, SFT_OWNED, argument_types, build, problems


@pytest.mark.parametrize(("read", "imported"), [(SFT_CONFIG, trl.SFTConfig), (LORA_CONFIG, peft.LoraConfig)])
def test_names_read_from_source_are_the_fields_of_the_class(read: upstream.ArgumentClass, imported: type) -> None:
    assert set(argument_types(read)) == {item.name for item in dataclasses.fields(imported)}


def test_what_we_own_exists_upstream() -> None:
    assert SFT_OWNED.keys() <= argument_types(SFT_CONFIG).keys()
    assert LORA_OWNED.keys() <= argument_types(LORA_CONFIG).keys()


def test_renamed_options_are_gone_upstream() -> None:
    assert not upstream.RENAMED.keys() & (argument_types(SFT_CONFIG).keys() | argument_types(LORA_CONFIG).keys())


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        (
            "learning_rat",
            1,
            "unknown key 'learning_rat' in 'train': it is no argument of trl.SFTConfig; did you mean 'learning_rate'?",
        ),
        (
            "warmup_ratio",
            0.1,
            "unknown key 'warmup_ratio' in 'train': use warmup_steps, where a number below 1 is a fraction "
            "of the steps",
        ),
        (
            "output_dir",
            "x",
            "train.output_dir cannot be set here: the run directory is runs/sft/<name>; move it with hydra.run.dir",
        ),
        ("learning_rate", "fast", "train.learning_rate is 'fast', which is no float"),
        ("bf16", "yes", "train.bf16 is 'yes', which is no bool"),
        ("num_train_epochs", -1, "train.num_train_epochs is -1: it must be above 0"),
        ("max_steps", 0, "train.max_steps is 0: it must be at least 1"),
        ("per_device_train_batch_size", 0, "train.per_device_train_batch_size is 0: it must be at least 1"),
        ("weight_decay", -0.1, "train.weight_decay is -0.1: it must not be negative"),
        ("eval_strategy", False, "train.eval_strategy is false: YAML reads a bare no as false; write 'no' in quotes"),
        ("learning_rate", None, "train.learning_rate is null: give it a value or leave it out"),
    ],
)
def test_a_wrong_train_setting_is_one_line(key: str, value: object, line: str) -> None:
    assert problems({key: value}, SFT_CONFIG, "train", SFT_OWNED) == [line]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 1e-4),
        ("learning_rate", 1),
        ("max_steps", -1),
        ("lr_scheduler_type", "cosine"),
        ("lr_scheduler_kwargs", {"num_cycles": 2}),
        ("report_to", ["tensorboard"]),
        ("tf32", None),
        ("run_name", "${oc.env:TOKEN}"),
    ],
)
def test_a_right_train_setting_is_let_through(key: str, value: object) -> None:
    assert problems({key: value}, SFT_CONFIG, "train", SFT_OWNED) == []


def test_a_wrong_lora_setting_is_one_line() -> None:
    assert problems({"rank": 8}, LORA_CONFIG, "lora", LORA_OWNED) == ["unknown key 'rank' in 'lora': use r"]
    assert problems({"lora_dropout": 1.0}, LORA_CONFIG, "lora", LORA_OWNED) == [
        "lora.lora_dropout is 1.0: it must be at least 0 and below 1"
    ]


@pytest.mark.parametrize(
    ("lora", "lines"),
    [
        ({"target_modules": "all-linear", "layers_to_transform": [0]}, ["layers_to_transform"]),
        ({"target_modules": ".*c_attn", "layers_to_transform": 0, "layers_pattern": "h"}, ["layers_to_", "layers_pat"]),
        ({"target_modules": ["c_attn"], "layers_pattern": "h"}, ["layers_pattern has no effect without"]),
        ({"target_modules": "attention", "layers_to_transform": [0]}, []),
        ({"layers_to_transform": [0], "layers_pattern": "h"}, []),
        ({"target_modules": "all-linear"}, []),
    ],
)
def test_what_chooses_layers_is_refused_where_it_has_no_effect(lora: dict[str, object], lines: list[str]) -> None:
    found = upstream.idle_layers(lora)
    assert len(found) == len(lines)
    assert all(line.startswith(f"lora.{start}") for line, start in zip(found, lines, strict=True))


def test_what_upstream_itself_refuses_names_the_section() -> None:
    with pytest.raises(ConfigError, match=r"^train: trl\.SFTConfig refuses these settings: .*sometimes"):
        build(SFT_CONFIG, {"eval_strategy": "sometimes", "bf16": False}, "train", output_dir="unused")
