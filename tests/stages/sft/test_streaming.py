"""`alignkit sft data.streaming=true`, with the real trainer."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignkit.data.sets import streaming
from alignkit.errors import AlignkitError, ConfigError, DataError, Interrupted, TrainingError
from alignkit.jobs import SftJob
from alignkit.stages.sft.data import view
from alignkit.stages.sft.run import run
from alignkit.training.sft import SftTrainer

NUM_ROWS = 36  # what the fixture `job` writes


@pytest.fixture
def words(write_rows: Callable[..., Path]) -> list[str]:
    """What turns the job of `job` into one that streams, 8 rows a step."""
    write_rows([{"instruction": "Say one and four.", "output": "one, four"}] * 4, "held.jsonl")
    return ["data.streaming=true", "data.eval_path=held.jsonl", "train.per_device_train_batch_size=8"]


def weights(run_dir: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run_dir) / "model.safetensors")


def largest_difference(one: str, other: str) -> float:
    a, b = weights(one), weights(other)
    return max(float((a[key] - b[key]).abs().max()) for key in a)


def sources(run_dir: str) -> list[str]:
    return [json.loads(line)["source"] for line in (Path(run_dir) / "rows.jsonl").read_text().splitlines()]


def test_the_same_rows_in_the_same_order_give_the_same_bits_as_without(
    job: Callable[..., SftJob], words: list[str]
) -> None:
    run(job(*words, "data.shuffle=false"), Path("streamed"))
    run(job(*words, "data.shuffle=false", "data.streaming=false"), Path("whole"))
    assert largest_difference("streamed", "whole") == 0
    assert sources("streamed") == [f"held.jsonl:{n}" for n in range(1, 5)] + [f"rows.jsonl:{n}" for n in range(1, 37)]
    assert sorted(sources("streamed")) == sorted(sources("whole"))


def test_stopped_in_the_second_pass_and_resumed_it_ends_in_the_same_bits(
    job: Callable[..., SftJob], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "BUFFER", 10)
    words += ["train.max_steps=9", "train.save_strategy=steps", "train.save_steps=3"]
    run(job(*words), Path("unbroken"))
    step = SftTrainer.training_step

    def dies_in_step_8(self: SftTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 7:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SftTrainer, "training_step", dies_in_step_8)
    with pytest.raises(Interrupted, match="SIGINT"):
        run(job(*words), Path("broken"))
    monkeypatch.setattr(SftTrainer, "training_step", step)
    assert {path.name for path in Path("broken/checkpoints").iterdir()} == {"checkpoint-3", "checkpoint-6"}
    assert NUM_ROWS < 6 * 8
    run(job(*words, "resume=true"), Path("broken"))
    assert largest_difference("unbroken", "broken") == 0
    assert sources("unbroken") == sources("broken")
    assert len(sources("broken")) == NUM_ROWS + 4
    losses = [
        [
            line["loss"]
            for line in map(json.loads, Path(f"{name}/metrics.jsonl").read_text().splitlines())
            if "loss" in line
        ]
        for name in ("unbroken", "broken")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 9


def test_what_is_announced_says_how_much_was_read(job: Callable[..., SftJob], words: list[str]) -> None:
    run(job(*words), Path("out"))
    said = Path("out/log.txt").read_text()
    assert "streaming only the first 1,000 rows of each source were read for these figures" in said
    assert "an epoch" not in said
    assert "8 rows a step; packed" in said
    after = said.split("read as training went:\n")[1].splitlines()
    assert after[:3] == ["          train  eval", "kept         36     4", "all rows     36     4"]


def test_inspect_shows_the_first_rows_and_says_so(job: Callable[..., SftJob], words: list[str]) -> None:
    shown = view(job(*words))
    assert len(list(shown.rows())) == NUM_ROWS
    assert shown.facts[-1] == "streaming: only the first 1,000 rows of each source were read for these figures"


def test_rows_that_do_not_fit_together_are_padded(
    job: Callable[..., SftJob], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit.stages.sft.batches._CAN_PACK", ())  # as with an attention that sees across rows
    shown = view(job(*words))
    assert any("batches of 8 rows, padded" in fact for fact in shown.facts)


def test_a_loss_that_is_not_finite_names_the_rows(job: Callable[..., SftJob], words: list[str]) -> None:
    words += ["data.shuffle=false", "train.learning_rate=1e30", "train.max_grad_norm=0", "train.max_steps=2"]
    named = ", ".join(rf"rows\.jsonl:{n}" for n in range(9, 17))
    with pytest.raises(TrainingError, match=rf"^step 2: the (loss|gradient) is not finite, .* on {named}\."):
        run(job(*words, "data.batching=padded"), Path("out"))


def test_a_row_that_breaks_the_rules_later_ends_the_run(
    job: Callable[..., SftJob], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (
        "alignkit.data.sets.items.NUM_FIRST",
        "alignkit.data.sets.streaming.NUM_FIRST",
        "alignkit.data.sets.streaming.CHUNK",
    ):
        monkeypatch.setattr(size, 12)
    ready = job(*words, "data.shuffle=false")
    with Path("rows.jsonl").open("a") as file:
        file.write('{"instruction": "Say nothing.", "output": null}\n')
    with pytest.raises(DataError, match=r"^rows\.jsonl:37: 'output' is null; fix the row, or leave") as caught:
        run(ready, Path("out"))
    assert caught.value.exit_status == 2
    assert json.loads(Path("out/run.json").read_text())["status"] == "failed"
    assert sources("out")[-1] == "rows.jsonl:36"


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["train.max_steps=-1"], r"^data\.streaming=true needs train\.max_steps"),
        (["data.eval_path=null"], r"^data\.streaming=true needs held-out rows of their own"),
        (["data.path=[{path: rows.jsonl, weight: 0.5}]"], r"^data\.path\[0\]\.weight is 0\.5: .* whole numbers only"),
        (["early_stopping=2"], r"^data\.streaming=true: an epoch has no end: give train\.eval_strategy=steps"),
        (["data.max_length=9"], r"^data: no row is left of 36: 36 too_long"),
    ],
)
def test_a_mistake_is_told_before_the_model_is_loaded(
    job: Callable[..., SftJob], words: list[str], more: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("alignkit.stages.sft.run.load_model", unreachable)
    with pytest.raises(AlignkitError, match=line):
        run(job(*words, *more), Path("out"))
    assert not Path("out").exists()


def test_all_that_needs_every_row_is_told_together(job: Callable[..., SftJob], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        run(job(*words, "train.max_steps=-1", "data.batching=grouped", "data.num_proc=2"), Path("out"))
    assert len(caught.value.problems) == 3


def test_two_processes_train_what_one_does(job: Callable[..., SftJob], words: list[str], fork_server: Any) -> None:
    words = [*words, "train.max_steps=6", "train.bf16=false", "train.report_to=none", "train.learning_rate=1e-3"]
    run(job(*words), Path("one"))
    small = ["model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32"]
    words += ["name=two", *small, "data.path=rows.jsonl", "samples=0", "train.per_device_train_batch_size=4"]
    both = replace(fork_server, folder=Path.cwd()).run_two("alignkit", "sft", *words)
    assert both.status == 0, both.said
    assert largest_difference("one", "runs/sft/two") < 2e-5
    assert sources("runs/sft/two") == sources("one")
