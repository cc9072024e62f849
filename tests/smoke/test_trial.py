"""Six planted faults, each found before a GPU would be; and jobs without one."""

import json
from pathlib import Path

import pytest

from alignkit import api
from alignkit.errors import AlignkitError, RunError
from alignkit.runs.lock import hold
from alignkit.runs.taken import lost
from alignkit.smoke.trial import Trial, report, try_out

NO_END = """{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}\
<|eos|>{% else %}{{ m.role }}: {{ m.content }}
{% endif %}{% endfor %}"""
REWARDS = """
import time

def too_few(prompts, completions, **columns):
    return [1.0]

def by_the_clock(prompts, completions, **columns):
    return [time.time() % 7 + i for i in range(len(completions))]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("broken.jinja").write_text("{% for m in messages %}{{ m.content.title.here() }}{% endfor %}")
    Path("no_end.jinja").write_text(NO_END)
    Path("my_rewards.py").write_text(REWARDS)
    return tmp_path


def tried(stage: str, *words: str) -> Trial:
    return try_out(api.job(stage, f"config=smoke/{stage}", *words), keep=None)  # type: ignore[call-overload]


def test_a_folder_that_another_one_fills_or_a_merge_is_left_to_it() -> None:
    refused = pytest.raises(RunError, match=r"^kept is being written by this process")
    with hold(Path("kept"), Path(".kept.lock")), refused:
        try_out(api.job("sft", "config=smoke/sft"), keep=Path("kept"))
    assert not Path("kept").exists()


@pytest.mark.parametrize("stage", ["sft", pytest.param("reward", marks=pytest.mark.slow), "dpo", "ppo"])
def test_a_sound_job_passes_and_leaves_nothing(stage: str, folder: Path) -> None:
    before = sorted(folder.rglob("*.*"))
    trial = tried(stage)
    assert trial.error is None
    assert [name for name, *_ in trial.steps] == [
        *("settings", "tiny model", "rows", "two steps", "resume", "reload and ask"),
    ]
    assert trial.steps[4][2] == "the same, bit for bit"
    assert [path for path in sorted(folder.rglob("*.*")) if "__pycache__" not in path.parts] == before


@pytest.mark.parametrize(
    ("stage", "words", "step", "line"),
    [
        ("sft", ["template.file=broken.jinja"], "rows", "broken.jinja"),
        ("sft", ["data.max_length=4"], "rows", "no row is left of 64: 64 too_long"),
        ("sft", ["template.file=no_end.jinja"], "rows", "end"),
        ("sft", ["lora=default", "lora.target_modules=[w_q]"], "tiny model", "'w_q' matches no linear layer"),
        ("ppo", ["reward=[{function: 'my_rewards.py:too_few'}]"], "two steps", "returned 1 scores for 4 completions"),
        (
            "ppo",
            ["reward=[{function: 'my_rewards.py:by_the_clock'}]"],
            "resume",
            "resumed after step 1, step 1 differs",
        ),
    ],
    ids=["template", "too long", "end not trained", "lora", "reward", "resume"],
)
def test_a_planted_fault_is_found(stage: str, words: list[str], step: str, line: str) -> None:
    trial = tried(stage, *words)
    assert trial.error is not None
    assert trial.steps[-1][0] == step
    assert line in str(trial.error)
    assert not [line for line in lost() if "alignkit-smoke-" in line]  # its own folders, which it removed


def test_responses_that_are_all_cut_never_teach_the_end() -> None:
    rows = [{"instruction": f"Say {i}.", "output": "a" * 200} for i in range(8)]
    Path("long.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    trial = tried(
        "sft", "data.path=long.jsonl", "data.eval_path=null", "data.max_length=150", "data.overlength=keep_start"
    )
    assert trial.steps[-1][0] == "rows"
    assert "carries loss in none of 8 rows: the model would never learn to stop" in str(trial.error)


def test_a_report_says_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    trial = Trial("sft", [("settings", 0.5, ""), ("rows", 1.0, "")], AlignkitError("data: no row is left"))
    with pytest.raises(AlignkitError, match="no row is left"):
        report(trial, as_json=False)
    assert capsys.readouterr().out == "ok   settings          0.5 s\nFAIL rows              1.0 s\n"
    with pytest.raises(AlignkitError):
        report(trial, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert (printed["ok"], printed["problems"]) == (False, ["data: no row is left"])
