"""The page of a run, by what it says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alignkit.cli import app
from alignkit.commands.report import run as report
from alignkit.errors import RunError
from alignkit.pages.page import json_text, render
from alignkit.pages.report import REPORT, write_report
from alignkit.pages.run_files import MOST_ROLLOUTS
from alignkit.runs.directory import Run
from alignkit.runs.given import Given
from alignkit.runs.manifest import lineage

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\x1b[2J\u202e"


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make(folder: Path, **parents: Path) -> Path:
    """A finished run whose model, data and settings are out to get the reader."""
    named = {key.replace("__", "."): str(path) for key, path in parents.items()}
    job = {"name": folder.name, "model": {"name": "org/base"}, "template": {"kwargs": {"a": HOSTILE}}}
    given = Given(job, {"template.kwargs.a": "command line"}, ["alignkit", HOSTILE])
    run = Run(folder, folder.parent.name, given, parents=lineage(named, folder), timings={"train": 61.0})
    run.result = {"eval_loss": {"first": 2.0, "last": 1.0}, "kept_step": 3}
    run.begin()
    losses = [{"step": step, "loss": 3.0 - step, HOSTILE: 1.0} for step in range(1, 4)]
    lines(folder / "metrics.jsonl", [{"step": 0, "eval_loss": 2.0}, *losses, {"step": 3, "eval_loss": 1.0}])
    fates = [("kept", ""), ("kept", ""), ("dropped", "too_long")]
    rows = [
        {"source": f"{HOSTILE}:{n}", "fate": fate, "reason": reason, "set": "train"}
        for n, (fate, reason) in enumerate(fates)
    ]
    lines(folder / "rows.jsonl", rows)
    lines(folder / "samples.jsonl", [{"prompt": HOSTILE, "wanted": "w", "before": "", "after": HOSTILE}])
    span = {"text": HOSTILE, "supervised": True, "special": False}
    first = {"place": HOSTILE, "size": "9 tokens", "parts": [{"name": "", "spans": [span]}]}
    (folder / "first_rows.json").write_text(json.dumps({"legend": [span], "rows": [first]}))
    rollouts = [
        {"step": n, "prompt": "p", "completion": f"{n} {HOSTILE}", "score": float(n % 7), "scores": {}, "kl": 0.5 * n,
         "length": n, "has_ended": True}
        for n in range(60)
    ]  # fmt: skip
    lines(folder / "rollouts.jsonl", rollouts)
    run.write("finished")
    return folder


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    sft = make(Path("runs/sft/a"))
    judge = make(Path("runs/reward/judge"), model__name=sft)
    return make(Path("runs/ppo/b"), **{"model__name": sft, "reward[0].model": judge})


def page_of(folder: Path) -> str:
    write_report(folder)
    return (folder / REPORT).read_text(encoding="utf-8")


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def words(page: str) -> str:
    """What a person reads of it, tags and scripts left out."""
    text = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def test_the_page_tells_what_ran_and_what_came_of_it(chain: Path) -> None:
    told = words(page_of(chain))
    assert "PPO of runs/sft/a, with reward runs/reward/judge." in told
    assert "1 were dropped; 0 were held out. It took 3 updates in 1 min 1 s on" in told
    assert "The weights of step 3 are the result." in told
    assert "held-out loss 2 → 1" in told
    assert "kept 2 dropped: too_long 1" in told
    assert "60 of 60 completions in rollouts.jsonl" in told


def test_a_chain_is_one_page_with_all_its_steps_and_what_each_was_taken_for(chain: Path) -> None:
    page = page_of(chain)
    assert re.findall(r'<details class="step" id="step-\d" data-step="\d"( open)?>', page) == ["", "", " open"]
    told = words(page)
    assert "org/base → runs/sft/a → runs/ppo/b" in told
    assert "reward of b: org/base → runs/sft/a → runs/reward/judge" in told


def test_a_parent_that_is_gone_is_said_to_be(chain: Path) -> None:
    (chain / "../../reward/judge/run.json").unlink()
    assert "reward of b: ? → runs/reward/judge (gone)" in words(page_of(chain))


def test_nothing_of_a_model_or_a_row_is_markup(chain: Path) -> None:
    page = page_of(chain)
    assert page.count("<script") == 3  # the library, ours, the data
    assert "<img" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "\\x1b[2J\\u202e" in page
    assert "://" not in re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)


def test_data_cannot_close_its_element() -> None:
    text = json_text(["</script><!--", "\u2028&"])
    assert text == '["\\u003c/script\\u003e\\u003c!--","\\u2028\\u0026"]'
    assert json.loads(text) == ["</script><!--", "\u2028&"]
    with pytest.raises(ValueError, match="JSON compliant"):
        json_text([float("nan")])


def test_a_page_without_data_is_small() -> None:
    nothing = {
        "title": "",
        "steps": [],
        "lineage": [],
        "pipeline": [],
        "swept": [],
        "has_overlay": False,
        "running": False,
        "written": "",
        "data": {"steps": [], "overlay": []},
        "uplot_license": "",
    }
    scripts = ("uplot/uPlot.iife.min.js", "templates/report.js")
    page = render("report.html", scripts=scripts, styles=("uplot/uPlot.min.css",), **nothing)
    assert len(page.encode()) < 100_000


def test_rollouts_are_bounded_and_the_last_stays(chain: Path) -> None:
    row = {"step": 1, "prompt": "p" * 100_000, "completion": "c", "score": 1.0, "scores": {}, "kl": None, "length": 1}
    lines(chain / "rollouts.jsonl", [row | {"step": step} for step in range(1, 2_001)])
    page = page_of(chain)
    rollouts = data_of(page)["steps"][-1]["rollouts"]
    assert len(rollouts) == MOST_ROLLOUTS
    assert rollouts[-1]["step"] == 2_000
    assert rollouts[0]["prompt"].endswith("p… (98,000 more characters)")
    assert "500 of 2,000 completions" in words(page)


def test_a_run_that_goes_on_has_a_page_that_loads_itself_again(tmp_path: Path) -> None:
    from alignkit.runs.lock import LOCK, hold

    folder = tmp_path / "sft" / "a"
    run = Run(folder, "sft", Given({}))
    with hold(folder, folder / LOCK):
        run.begin()
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
        page = page_of(folder)
    assert 'data-running="yes"' in page
    assert "It is running" in words(page)
    assert "cannot be read" not in page  # a line that is being written
    assert 'data-running="no"' in page_of(folder)


def test_lines_that_cannot_be_read_are_counted(chain: Path) -> None:
    with (chain / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss"\n[1]\n')
    assert "2 lines of metrics.jsonl cannot be read." in words(page_of(chain))


def test_the_command_writes_the_page_and_says_the_verdicts(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(["sft/a"], Path("runs"), html=None, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "runs/sft/a: finished, no sign of trouble",
        "page runs/sft/a/report.html",
    ]
    report(["a", "b"], Path("runs"), html=None, as_json=True)
    steps = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(step["folder"]).name for step in steps] == ["a", "judge", "b"]
    assert {verdict["state"] for verdict in steps[0]["verdicts"]} == {"fine"}
    assert Path("report.html").exists()


def test_a_run_that_is_not_there_is_said_in_a_line(chain: Path) -> None:
    with pytest.raises(RunError, match=r"there is no run sft/b below runs; did you mean 'sft/a'\?"):
        report(["sft/b"], Path("runs"), html=None, as_json=False)
    assert CliRunner().invoke(app, ["report", "a", "--html", "there.html"]).exit_code == 0
    assert Path("there.html").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report_card.json", '{"eval": {}, "b": 3}'),
        ("report_card.json", "[]"),
        ("first_rows.json", '{"rows": [3, {"parts": 0}]}'),
        ("first_rows.json", "{"),
        ("first_rows.json", '{"legend": ["a"], "rows": []}'),
        ("first_rows.json", '{"legend": [], "rows": [{"place": "a", "parts": []}]}'),
        ("report_card.json", '{"eval": {"accuracy": {"value": "a"}, "longer_wins": {}, "margin": {}}}'),
        ("evaluate.json", '{"runs": [1, {"name": "a", "loss": 3, "kl": {"value": "x"}}]}'),
        ("samples.jsonl", '{"prompt": 3}\n[]\n'),
        ("rollouts.jsonl", '{"scores": 1, "score": "a", "step": null}\n{"completion": {"a": 1}}\n'),
        ("rows.jsonl", '{"set": 1, "fate": 2, "reason": null}\n'),
        ("metrics.jsonl", '{"step": "a", "loss": [1]}\n{"loss": NaN, "step": 1}\n{"step": 1e999, "loss": 1}\n'),
    ],
)
def test_a_damaged_file_leaves_its_part_out(chain: Path, name: str, content: str) -> None:
    (chain / name).write_text(content)
    page = words(page_of(chain))
    assert "PPO of runs/sft/a" in page
    assert (f"{name} is damaged" in page) == (name in ("report_card.json", "first_rows.json"))


def test_a_pipeline_has_a_page_of_all_its_steps(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/all")
    sft = make(folder / "sft")
    judged = Run(folder / "judge", "evaluate", Given({}), parents=lineage({"models[0]": str(sft)}, folder / "judge"))
    judged.begin()
    interval = {"value": 1.5, "low": 1.25, "high": 2.0}
    (judged.folder / "evaluate.json").write_text(json.dumps({"runs": [{"name": "sft", "loss": interval}]}))
    judged.write("finished")
    steps = {
        "sft": {"runs": "sft", "folder": "runs/all/sft", "did": "skip"},
        "judge": {"runs": "evaluate", "folder": "gone/judge", "did": "run", "seconds": 75.0},  # moved since
        "last": {"runs": "merge", "folder": "runs/all/last", "did": "–"},
    }
    (folder / "pipeline.json").write_text(json.dumps({"steps": steps}))
    report(["all"], Path("runs"), html=None, as_json=False)
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == ["runs/all/judge: finished", "page runs/all/report.html"]
    told = words((folder / REPORT).read_text())
    assert (
        "1 sft sft skipped: nothing had changed finished 2 judge evaluate ran 1 min 15 s finished 3 last merge" in told
    )
    assert "Evaluation of runs/all/sft." in told
    assert "sft 1.5 [1.25, 2] – –" in told


def test_curves_of_several_runs_are_laid_over_each_other(chain: Path) -> None:
    make(Path("runs/ppo/c"))
    report(["b", "c"], Path("runs"), html=Path("both.html"), as_json=False)
    page = Path("both.html").read_text()
    loss = data_of(page)["overlay"][0]
    assert (loss["title"], [one["label"] for one in loss["series"]]) == ("loss: training", ["b", "c"])
    assert "Curves of all runs" in words(page)
    alone = page_of(chain)
    assert data_of(alone)["overlay"] == []
    assert "Curves of all runs" not in words(alone)


def test_a_sweep_has_a_page_of_its_runs(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/sft/sweep")
    for name in ("lr=1", "lr=2"):
        make(folder / name)
    (folder / "multirun.yaml").write_text("{}")
    values = {"lr=2": 0.5, "lr=1": 1.0, "lr=3": None}
    runs = [
        {"folder": f"elsewhere/{name}", "overrides": [HOSTILE], "value": value, "problem": "stopped"}
        for name, value in values.items()
    ]
    record = {"figure": "eval_loss", "best": "elsewhere/lr=2", "runs": runs}
    (folder / "sweep.json").write_text(json.dumps(record))
    report(["sweep"], Path("runs"), html=None, as_json=False)
    assert capsys.readouterr().out.splitlines()[-1] == "page runs/sft/sweep/report.html"
    page = (folder / REPORT).read_text()
    assert [one["label"] for one in data_of(page)["overlay"][0]["series"]] == ["lr=2", "lr=1"]
    told = words(page)
    assert "eval loss 0.5000 the best" in told
    assert "eval loss stopped" in told
    assert page.count("<script") == 3
