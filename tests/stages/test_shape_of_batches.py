"""How the rows of a step are spread over batches and processes changes nothing but memory and time."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from alignkit.choices import Batching
from alignkit.stages import pair_batches
from alignkit.stages.sft import batches as sft_batches
from alignkit.training import checkpoints
from alignkit.training.metrics import read_metrics

SHAPES = [(8, 1, 1), (4, 1, 2), (2, 2, 2), (1, 8, 1)]  # rows a device, batches added up, processes
LENGTHS = [(7 * number) % 23 + 2 for number in range(200)]


def orders(
    job: Any, epoch_orders: Callable[..., Any], layout: Batching, dataset: Dataset, name: str
) -> list[list[int]]:
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
    found = []
    for shape in SHAPES:
        args = SimpleNamespace(**dict(zip(keys, shape, strict=True)), per_device_eval_batch_size=shape[0])
        found.append(list(epoch_orders(job, layout, args)[name](dataset)))
    return found


@pytest.mark.parametrize("name", ["train_order", "eval_order"])
@pytest.mark.parametrize("layout", list(Batching)[1:])
def test_the_rows_of_a_step_are_the_same_in_every_shape(
    layout: Batching, name: str, job: Callable[..., Any], pair_job: Callable[..., Any]
) -> None:
    ids = [[1] * length for length in LENGTHS]
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids, "row_index": list(range(len(ids)))})
    sides = dict.fromkeys(("prompt_ids", "chosen_ids", "rejected_ids"), ids)
    pairs = Dataset.from_dict({**sides, "row_index": list(range(len(ids)))})
    for found in (
        orders(job(), sft_batches.epoch_orders, layout, rows, name),
        orders(pair_job("reward", "model=tiny_gpt2"), pair_batches.epoch_orders, layout, pairs, name),
    ):
        assert all(order == found[0] for order in found)
        assert sorted(found[0]) == list(range(len(ids)))


BATCHES = (
    ["train.per_device_train_batch_size=8", "train.gradient_accumulation_steps=1"],
    [
        "train.per_device_train_batch_size=2",
        "train.gradient_accumulation_steps=4",
    ],
)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_training_is_the_same_in_every_shape(stage: str, job: Callable[..., Any], pair_job: Callable[..., Any]) -> None:
    """Every second step is an epoch's last, of three rows: 3, or 2 and 1."""
    words = ["data.batching=grouped", "model=tiny_gpt2", "model.dtype=float32", "data.limit=11"]
    make = job if stage == "sft" else partial(pair_job, stage, "template=instruction")
    figures = []
    for number, shape in enumerate(BATCHES):
        run = import_module(f"alignkit.stages.{stage}.run").run
        run(make(*words, *shape, *([] if stage == "reward" else ["samples=0"])), Path(str(number)))
        lines = [line for line in read_metrics(Path(f"{number}/metrics.jsonl")) if "loss" in line]
        ours = {"tokens_per_second", "supervised_tokens_per_second", "epoch"}  # upstream counts an epoch's batches
        figures.append([value for line in lines for name, value in line.items() if name not in ours])
    assert len(figures[0]) > 20
    assert figures[0] == pytest.approx(figures[1], rel=1e-3, abs=1e-5)


class Killed(BaseException):
    """Ends a run where a signal would."""


def test_a_run_goes_on_in_the_order_it_began_in(job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of version 0.1 does not say how its rows were grouped: by what a device took at once."""
    run = import_module("alignkit.stages.sft.run").run
    seen: list[tuple[int, list[int]]] = []
    sampler = "alignkit.training.ordered.OrderedTrainer._get_train_sampler"
    original = import_module("alignkit.training.ordered").OrderedTrainer._get_train_sampler

    def watched(*args: Any) -> Any:
        order = original(*args)
        seen.append((order.group, list(order)))
        return order

    seal = checkpoints.seal

    def of_before(partial_: Path, **rest: Any) -> None:
        path = partial_ / "window.json"
        path.write_text(path.read_text().replace('"group"', '"unknown"'))
        seal(partial_, **rest)
        raise Killed

    words = ["data.batching=grouped", "train.save_steps=2", *BATCHES[1]]
    monkeypatch.setattr(sampler, watched)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "seal", of_before)
        with pytest.raises(Killed):
            run(job(*words), Path("out"))
    assert {group for group, _ in seen} == {8}
    seen.clear()
    run(job(*words, "resume=true"), Path("out"))
    assert [group for group, _ in seen][-1] == 2
    window = sorted(Path("out/checkpoints").glob("*/window.json"))[-1].read_text()
    assert '"group": 2' in window
