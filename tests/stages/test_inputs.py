"""A run goes on with what it began with, or not at all; and a template's date is that of the run."""

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from torch.testing import assert_close

from alignkit.commands import generate, verify
from alignkit.data.encode.dates import with_date
from alignkit.data.encode.sandbox import render_chat
from alignkit.errors import Interrupted, RunError
from alignkit.launch import compose_job, launch

SMALL = [
    *("model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=8", "model.config.n_head=2"),
    *("model.config.n_inner=8", "model.dtype=float32", "train.report_to=none"),
]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ strftime_now('%d %b %Y') }} {{ m.content }}:"
    "{% else %}{% generation %}{{ m.content + end }}{% endgeneration %}{% endif %}{% endfor %}"
)
REWARDS = "def length(prompts, completions):\n    return [float(len(text)) for text in completions]\n"
STAGES = {
    "sft": ["train.max_steps=2", "template.file=own.jinja", "samples=0"],
    "ppo": [
        *("template=instruction", "reward=[{function: 'rewards.py:length'}]", "ppo.num_updates=2", "samples=0"),
        *("ppo.num_prompts=8", "ppo.num_mini_batches=1", "sampling.max_new_tokens=4"),
    ],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": f"Say {number}.", "completion": str(number)}) + "\n" for number in range(8)]
    Path("rows.jsonl").write_text("".join(rows))
    Path("held_out.jsonl").write_text(rows[0])
    Path("own.jinja").write_text(TEMPLATE)
    Path("rewards.py").write_text(REWARDS)
    launch("sft", ["name=parent", *SMALL, "data.path=rows.jsonl", "train.max_steps=1", "samples=0"])
    return tmp_path


def words(stage: str, *more: str) -> list[str]:
    data = ["data.path=rows.jsonl", "data.eval_path=held_out.jsonl", "train.report_to=none", "model.dtype=float32"]
    return ["name=it", "model=run", "model.name=runs/sft/parent", *data, *STAGES[stage], *more]


def start(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a run, and stop it before its first step."""
    with monkeypatch.context() as patch:
        patch.setattr(f"alignkit.stages.{stage}.run.train", stop)
        with pytest.raises(Interrupted):
            launch(stage, words(stage))


def stop(*_: Any, **__: Any) -> None:
    raise Interrupted(15, "stopped")


def changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("stage", "file", "line"),
    [
        ("sft", "rows.jsonl", "the data train rows.jsonl has changed since runs/sft/it began"),
        ("sft", "held_out.jsonl", "the data eval held_out.jsonl has changed since runs/sft/it began"),
        ("sft", "own.jinja", "the template own.jinja has changed since runs/sft/it began"),
        ("sft", "runs/sft/parent/tokenizer.json", "the tokenizer model.name tokenizer.json has changed"),
        ("sft", "runs/sft/parent/model.safetensors", "the model model.name model.safetensors has changed"),
        ("ppo", "rewards.py", "the function reward[0] rewards.py has changed since runs/ppo/it began"),
    ],
)
def test_what_changed_between_start_and_resume_is_refused_and_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str, file: str, line: str
) -> None:
    start(stage, monkeypatch)
    path = folder / file
    content = path.read_text() if path.suffix in (".jsonl", ".jinja", ".py") else ""
    if content:
        path.write_text(content.replace("Say", "Tell").replace("}}:", "}}; ").replace("len(text)", "-len(text)") + "\n")
    else:
        path.write_text(path.read_text() + "\n") if path.suffix == ".json" else changed(path)
        shutil.rmtree(path.parent / "checkpoints")
        (path.parent / "checksums.json").write_text('{"files": {}}')  # as if it had been trained anew
    with pytest.raises(RunError) as caught:
        launch(stage, words(stage, "resume=true"))
    assert any(line in problem for problem in caught.value.problems)
    if content:
        path.write_text(content)
        launch(stage, words(stage, "resume=true"))
        assert json.loads(Path(f"runs/{stage}/it/run.json").read_text())["status"] == "finished"


def test_changed_data_can_be_forced_and_are_recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start("sft", monkeypatch)
    (folder / "rows.jsonl").write_text((folder / "rows.jsonl").read_text().replace("Say", "Tell"))
    launch("sft", words("sft", "resume=force"))
    record = json.loads(Path("runs/sft/it/run.json").read_text())
    assert record["status"] == "finished"
    assert record["starts"][-1]["changes"] == ["the data train rows.jsonl has changed since runs/sft/it began"]


@pytest.mark.parametrize("stage", STAGES)
def test_rows_that_another_version_held_out_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    start(stage, monkeypatch)
    path = Path(f"runs/{stage}/it/rows.jsonl")
    path.write_text("".join([*path.read_text().splitlines(keepends=True)[1:], '{"set": "eval", "fate": "dropped"}\n']))
    moved = f"rows.jsonl:8 was kept (eval) when runs/{stage}/it began, and is kept (train) (2 rows have changed)"
    with pytest.raises(RunError) as caught:
        launch(stage, words(stage, "resume=true"))
    assert caught.value.problems[0] == f"resume=true: {moved}"
    launch(stage, words(stage, "resume=force"))
    record = json.loads(Path(f"runs/{stage}/it/run.json").read_text())
    assert (record["status"], record["starts"][-1]["changes"]) == ("finished", [moved])


def test_a_module_that_the_file_of_a_function_imports_is_part_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    Path("imported_beside.py").write_text("SIGN = 1\n")
    Path("rewards.py").write_text(f"from imported_beside import SIGN\n{REWARDS}")
    start("ppo", monkeypatch)
    Path("imported_beside.py").write_text("SIGN = -1\n")
    with pytest.raises(RunError, match=r"the module imported for reward\[0\] imported_beside\.py has changed since"):
        launch("ppo", words("ppo", "resume=true"))


def test_rows_of_the_hub_are_of_one_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = folder / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    rows = Dataset.from_list([{"prompt": f"Say {number}.", "completion": str(number)} for number in range(8)])

    def download(commit: str) -> None:
        """As `datasets` leaves it in its cache."""
        of_commit = cache / "org___rows/default/0.0.0" / commit
        rows.save_to_disk(str(folder / "saved"))
        of_commit.mkdir(parents=True)
        (folder / "saved/data-00000-of-00001.arrow").rename(of_commit / "rows-train.arrow")
        info = {
            "builder_name": "json",
            "dataset_name": "rows",
            "config_name": "default",
            "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
            "features": {name: {"dtype": "string", "_type": "Value"} for name in rows.column_names},
            "splits": {"train": {"name": "train", "num_bytes": 1, "num_examples": 8, "dataset_name": "rows"}},
        }
        (of_commit / "dataset_info.json").write_text(json.dumps(info))

    def of_hub(*more: str) -> list[str]:
        return [word.replace("data.path=rows.jsonl", "data.path=org/rows") for word in words("sft", *more)]

    download("a" * 40)
    with monkeypatch.context() as patch:
        patch.setattr("alignkit.stages.sft.run.train", stop)
        with pytest.raises(Interrupted):
            launch("sft", of_hub())
    assert json.loads(Path("runs/sft/it/run.json").read_text())["inputs"]["hub_data"] == {"train org/rows": "a" * 40}
    shutil.rmtree(cache)
    download("b" * 40)
    with pytest.raises(RunError, match="the hub data train org/rows has changed since runs/sft/it began"):
        launch("sft", of_hub("resume=true"))


def test_a_run_begun_before_fingerprints_goes_on_and_says_what_is_not_checked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start("sft", monkeypatch)
    path = Path("runs/sft/it/run.json")
    record = json.loads(path.read_text())
    assert record["format"] == 3
    path.write_text(
        json.dumps({key: value for key, value in record.items() if key not in ("format", "inputs", "date")})
    )
    capsys.readouterr()
    launch("sft", words("sft", "resume=true"))
    assert capsys.readouterr().out.count("is not checked") == 1


class _Tomorrow(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(2031, 5, 17, 12)  # as templates have it


def test_the_date_that_a_template_asks_for_is_that_of_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch("sft", [*words("sft"), "hydra.run.dir=unbroken"])
    first = json.loads(Path("unbroken/run.json").read_text())["date"]
    start("sft", monkeypatch)
    path = Path("runs/sft/it/run.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"date": first}))
    monkeypatch.setattr("alignkit.runs.directory.datetime", _Tomorrow)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", _Tomorrow)
    launch("sft", words("sft", "resume=true"))
    launch("sft", [*words("sft"), "hydra.run.dir=tomorrow"])
    weights = {run: load_file(f"{run}/model.safetensors") for run in ("unbroken", "runs/sft/it", "tomorrow")}
    assert_close(weights["runs/sft/it"], weights["unbroken"], atol=0, rtol=0)
    with pytest.raises(AssertionError):
        assert_close(weights["tomorrow"], weights["unbroken"], atol=0, rtol=0)
    today = f"{datetime.fromisoformat(first):%d %b %Y}"
    for run, date in (("runs/sft/it", today), ("tomorrow", "17 May 2031")):
        for template in ("template=native", "template.file=own.jinja"):
            job = compose_job("generate", ["sampling.max_new_tokens=2", template], model={"name": run})
            capsys.readouterr()
            generate.run(job, prompts=["Say one."], prompts_path=None, out=None)
            assert f"{date} Say one.:" in capsys.readouterr().out
        verify.run(compose_job("verify", [], model={"name": run}))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("\nToday: {{ strftime_now('%d %b %Y') }}.", "\nToday: 03 Feb 2026."),
        ("{{ strftime_now('%Y-%m-%d %H:%M') }}", "2026-02-03 04:05"),
        ("{% set f = '%-d/%y 100%%' %}{{ strftime_now(f) if strftime_now is defined }}", "3/26 100%"),
        ("{% macro m() %}{{ strftime_now('%A') }}{% endmacro %}{{ m() }}", "Tuesday"),
        ("no date", "no date"),
    ],
)
def test_a_date_in_a_template_renders_as_the_clock_would(source: str, expected: str) -> None:
    now = datetime(2026, 2, 3, 4, 5)  # as templates have it
    fixed = with_date(source, now)
    assert with_date(fixed, datetime(2030, 1, 1)) == fixed  # it has its date
    assert render_chat(fixed, [], variables={}, add_generation_prompt=False)[0] == expected
    assert (fixed == source) == (source == "no date")
