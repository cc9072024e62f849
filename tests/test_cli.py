"""The command line as a person meets it: what it prints, where, and its exit status."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from alignkit import cli

Run = Callable[..., subprocess.CompletedProcess[str]]
Main = Callable[..., tuple[int, str, str]]
TINY = ["model=tiny_gpt2", "data.path=rows.jsonl"]
QUICK = ["samples=0", "train.max_steps=1", "train.report_to=none", "train.save_strategy='no'"]


@pytest.fixture(autouse=True)
def _rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., Path]) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows([{"instruction": "Hi", "output": "Yo"}, {"instruction": "Up", "output": "Do"}])


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """The command line in this process, where the imports are paid already: (exit status, stdout, stderr)."""

    def main(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["alignkit", *words])
        status = 0
        try:
            cli.main()
        except SystemExit as done:
            status = int(done.code or 0)
        return (status, *capsys.readouterr())

    return main


def test_the_version_is_the_installed_one(alignkit: Run) -> None:
    done = alignkit("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"alignkit {version('alignkit')}\n", "")


def test_no_words_show_the_help_and_are_a_mistake(alignkit: Run) -> None:
    done = alignkit()
    assert done.returncode == 2
    assert "Commands:" in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["sft", "inspect", "generate", "demo"])
def test_every_command_has_help_with_an_example_or_its_words(main: Main, command: str) -> None:
    status, out, err = main(command, "--help")
    assert (status, err) == (0, "")
    assert f"alignkit {command} " in out
    assert all(
        line.strip() for line in re.findall(r"^  --[\w-]+(.*)$", out, re.MULTILINE)
    )  # each option says what it is
    assert main(command, "-h")[1] == out
    assert command in main("--help")[1]


def test_the_help_of_a_stage_names_its_settings(main: Main) -> None:
    out = " ".join(main("dpo", "--help")[1].split())
    assert (
        "Settings are name, seed, resume, overwrite, early_stopping, samples and the sections model, data, template, "
        "lora, train, sampling and reference; --cfg job shows them all with their values. The run is written to "
        "runs/dpo/<name>."
    ) in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sftt"], "No such command 'sftt'. Did you mean 'sft'?"),
        (["sft", "--multirum"], "No such option: --multirum (Possible options: --multirun"),
        (
            ["sft", "--lr", "1e-3"],
            "No such option: --lr; a setting is typed without dashes, as train.learning_rate=VALUE",
        ),
        (
            ["sft", "--learning-rate", "1e-3"],
            "No such option: --learning-rate; a setting is typed without dashes, as train.learning_rate=VALUE",
        ),
        (["plan", "sft", "--model", "m"], "No such option: --model; a setting is typed without dashes, as model=VALUE"),
        (
            ["evaluate", "runs/sft/a", "--prompts", "p.txt"],
            "No such option: --prompts; a setting is typed without dashes, as KEY=VALUE",
        ),
        (["sft", "--config", "a.yaml"], "No such option: --config; a configuration file is given as config=FILE"),
        (["inspect", "sft", *TINY, "rows=1"], "alignkit: unknown key 'rows': it is an option, typed as --rows VALUE"),
        (["sft", *TINY, "json=true"], "alignkit: unknown key 'json': it is an option, typed as --json"),
        (["verify", "--lr", "1"], "No such option: --lr"),
        (["sft", "--cfg"], "Option '--cfg' requires an argument."),
        (["inspect"], "Missing argument 'stage'."),
        (
            ["inspect", "sftt"],
            "alignkit: inspect: there is no stage 'sftt', only sft, reward, dpo, ppo; did you mean 'sft'?",
        ),
        (["inspect", "sft", "--rows", "-1"], "Invalid value for '--rows': Input should be greater than or equal to 0"),
        (["generate"], "Missing argument 'run'."),
        (["sft", *TINY, "--cfg", "jop"], "alignkit: --cfg jop: choose job, hydra, all; did you mean 'job'?"),
        (["sft", *TINY, "a b=3"], "alignkit: 'a b=3' is not key=value"),
        (
            ["sft", *TINY, "name=my", "run"],
            "alignkit: 'run' is not key=value; if it belongs to name=my, type 'name=my run'",
        ),
        (["generate", "m", "-p", "hi"], "No such option: -p; did you mean --prompt or --prompts?"),
        (["sft", *TINY, "=3"], "alignkit: '=3' is not key=value"),
        (
            ["sft", *TINY, "data.path=[1"],
            "alignkit: data.path=[1: what has [ in it must be quoted: type 'data.path=\"[1\"'",
        ),
        (
            ["sft", *TINY, "name=${oc.env:NOT_SET_ANYWHERE}"],
            "the environment variable NOT_SET_ANYWHERE is not set: export NOT",
        ),
        (["sft", "--config-dir", "gone", *TINY], "alignkit: --config-dir: 'gone' is no folder"),
        (["inspect", "sft", *TINY, "--html", "."], "alignkit: --html . is a folder: name a file in it"),
        (
            ["compare", "m", "--html", "rows.jsonl/a"],
            "alignkit: --html rows.jsonl/a cannot be written: part of its path",
        ),
        (["next", "m", "--prompt", "a", "--png", "."], "alignkit: --png . is a folder: name a file in it"),
        (
            ["evaluate", "gone"],
            "alignkit: data.path is missing: gone is no run of alignkit sft, dpo or ppo, which knows",
        ),
    ],
)
def test_a_mistake_exits_2_with_its_line_on_stderr(main: Main, tmp_path: Path, words: list[str], line: str) -> None:
    status, out, err = main(*words)
    assert (status, out) == (2, "")
    assert line in err.splitlines()[-1]
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_mistakes_in_settings_are_a_line_each_and_answered_before_anything_is_made(
    alignkit: Run, tmp_path: Path
) -> None:
    done = alignkit("sft", "model=tiny_gpt", "data.path=gone.jsonl", "train.lerning_rate=1", "data.maxlength=3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "alignkit: no option 'tiny_gpt' in the group 'model', which has gpt2, llama32_1b, qwen3_0_6b, run, "
        "smollm2_135m, tiny_gpt2, tiny_llama; did you mean 'tiny_gpt2'?",
        "alignkit: unknown key 'lerning_rate' in 'train': it is no argument of trl.SFTConfig; did you mean "
        "'learning_rate'?",
        "alignkit: unknown key 'data.maxlength'; did you mean 'data.max_length'?",
        "alignkit: data.path: gone.jsonl: there is no such file; did you mean 'rows.jsonl'?",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "gone", "lost", "--prompt", "a", "sed=1"],
        ["chat", "gone", "lost", "sed=1"],
        ["next", "gone", "lost", "--prompt", "a", "sed=1"],
        ["evaluate", "gone", "lost", "data.path=rows.jsonl", "sed=1"],
        ["evaluate", "gone", "lost", "--tasks", "arc_easy", "sed=1"],
        ["score", "gone", "--pairs", "rows.jsonl", "sed=1"],
        ["verify", "gone", "sed=1"],
    ],
    ids=lambda words: words[0],
)
def test_a_wrong_model_is_told_with_a_wrong_setting(main: Main, words: list[str]) -> None:
    named = [word for word in words if word in ("gone", "lost")]
    for name in named:
        Path(name).mkdir()
    status, _, err = main(*words)
    assert status == 2
    setting, *models = err.splitlines()
    assert setting.startswith("alignkit: unknown key 'sed'")
    assert models == [f"alignkit: model.name: {name} holds no model, config.json is missing" for name in named]


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "here", "--prompt", "a"],
        ["next", "here", "--prompt", "a"],
        ["chat", "here"],
        ["compare", "here", "more", "--prompt", "a"],
        ["evaluate", "here", "data.path=rows.jsonl"],
        ["evaluate", "here", "--tasks", "arc_easy"],
        ["merge", "here", "merged"],
        ["verify", "here"],
        ["score", "here", "--pairs", "rows.jsonl"],
    ],
    ids=lambda words: " ".join(words),
)
def test_what_a_command_names_is_not_set_once_more(main: Main, words: list[str]) -> None:
    Path("rows.jsonl").touch()
    status, out, err = main(*words, "model.name=other")
    assert (status, out) == (2, "")
    line = "alignkit: model.name=other: the command names here, and has one of them; leave model.name out"
    assert line in err.splitlines()


def test_the_file_of_a_command_is_not_set_once_more(main: Main) -> None:
    status, _, err = main("score", "here", "--pairs", "rows.jsonl", "data.path=more.jsonl")
    assert status == 2
    line = "alignkit: data.path=more.jsonl: the command names rows.jsonl, and has one of them; leave data.path out"
    assert line in err.splitlines()


def test_the_model_that_a_command_names_is_stronger_than_that_of_a_file(main: Main) -> None:
    Path("my.yaml").write_text("model: {name: other}\n")
    status, _, err = main("generate", "here", "--prompt", "a", "config=my.yaml")
    assert status == 2
    assert "model.name: there is no folder 'here'" in err


def test_mistakes_in_data_are_a_line_each_in_every_command(main: Main) -> None:
    Path("rows.jsonl").write_text('{"instruction": "a", "output": null}\n{"instruction": "", "output": "b"}\n')
    for command in (["sft"], ["inspect", "sft"]):
        status, out, err = main(*command, *TINY)
        assert status == 2
        assert out == ""
        assert err.splitlines() == [
            "alignkit: 2 malformed rows: fix them, or leave them out with data.malformed=drop",
            "alignkit: rows.jsonl:1: 'output' is null",
            "alignkit: rows.jsonl:2: 'instruction' is empty",
        ]
    assert not Path("runs").exists()


def test_a_training_that_cannot_go_on_exits_1_without_a_traceback(main: Main) -> None:
    status, _, err = main(
        "sft", *TINY, *QUICK, "train.max_steps=9", "train.learning_rate=1e30", "train.max_grad_norm=0"
    )
    assert status == 1
    (line,) = [line for line in err.splitlines() if line.startswith("alignkit: ")]
    assert re.match(r"alignkit: step \d: the (loss|gradient) is not finite, at .*rows\.jsonl:\d", line)
    assert "Traceback" not in err


def bug(*args: object, **kwargs: object) -> None:
    raise LookupError("a bug\nof two lines")


def test_a_bug_exits_1_in_a_line_with_its_traceback_in_a_file(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit.stages.sft.run.prepare", bug)
    status, _, err = main("sft", *TINY)
    assert status == 1
    found = re.fullmatch(r"alignkit: internal error: LookupError: a bug; the traceback is in (/\S+)\n", err)
    assert found, err
    traceback = Path(found[1])
    assert traceback.read_text().startswith("Traceback (most recent call last):\n")
    assert traceback.read_text().endswith("LookupError: a bug\nof two lines\n")
    traceback.unlink()


def test_a_bug_in_the_middle_of_a_run_has_its_traceback_in_the_runs_log(
    main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit.stages.sft.run.conclude", bug)
    status, _, err = main("sft", *TINY, *QUICK)
    assert status == 1
    assert err.splitlines()[-1] == (
        "alignkit: internal error: LookupError: a bug; the traceback is in runs/sft/default/log.txt"
    )
    log = Path("runs/sft/default/log.txt").read_text()
    assert "Traceback (most recent call last):\n" in log
    assert log.endswith("LookupError: a bug\nof two lines\n")
    assert json.loads(Path("runs/sft/default/run.json").read_text())["status"] == "failed"


def test_a_bug_is_raised_where_one_asks_to_debug(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit.stages.sft.run.prepare", bug)
    monkeypatch.setenv("ALIGNKIT_DEBUG", "1")
    with pytest.raises(LookupError, match="a bug"):
        main("sft", *TINY)


def test_cfg_prints_what_would_run_and_starts_nothing(main: Main, tmp_path: Path) -> None:
    Path("mine.yaml").write_text("name: mine\nlora: {r: 4}\ndata: {max_length: 64}\n")
    status, out, err = main("sft", "config=mine.yaml", *TINY, "--cfg", "job", "train.learning_rate=1e-3", "lora.r=8")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["name: mine", "seed: 0"]
    assert "  max_length: 64" in lines
    assert "  r: 8" in lines
    assert "  learning_rate: 0.001" in lines
    assert "hydra" not in out
    assert "overlay" not in out
    assert "run:\n    dir: runs/sft/${name}" in main("sft", *TINY, "--cfg", "hydra")[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "rows.jsonl"]


def test_cfg_shows_a_secret_as_it_was_written(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "open sesame")
    _, out, _ = main("sft", *TINY, "train.run_name=${oc.env:SECRET}", "--cfg", "job")
    assert "  run_name: ${oc.env:SECRET}" in out.splitlines()
    assert main("sft", *TINY, *QUICK, "train.run_name=${oc.env:SECRET}")[0] == 0
    written = [path for path in Path("runs").rglob("*") if path.is_file() and b"open sesame" in path.read_bytes()]
    assert written == []


def test_info_tells_how_a_job_is_composed_and_starts_nothing(alignkit: Run, tmp_path: Path) -> None:
    done = alignkit("sft", *TINY, "--info", "defaults")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"model/tiny_gpt2 +\| model ", done.stdout)
    for words in (["--info", *TINY], [*TINY, "--info"]):  # alone it means all, wherever it stands
        assert alignkit("sft", *words).stdout.startswith("Hydra ")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_info_leaves_no_log_behind_in_the_process(main: Main) -> None:
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    assert main("sft", *TINY, "--info", "defaults")[0] == 0
    assert (root.level, root.handlers) == before


def test_multirun_runs_every_combination_in_a_folder_of_its_own(main: Main) -> None:
    status, _, err = main("sft", "--multirun", *TINY, *QUICK, "name=grid", "seed=1,2", "train.learning_rate=1e-3,1e-2")
    assert status == 0, err
    runs = sorted(Path("runs/sft/grid").glob("*/run.json"))
    assert [run.parent.name for run in runs] == ["0", "1", "2", "3"]
    jobs = [json.loads(run.read_text())["job"] for run in runs]
    assert [(job["seed"], job["train"]["learning_rate"]) for job in jobs] == [
        (1, 0.001),
        (1, 0.01),
        (2, 0.001),
        (2, 0.01),
    ]
    assert len({(run.parent / "model.safetensors").read_bytes() for run in runs}) == 4


def test_a_sweep_goes_on_after_a_job_that_fails_and_ends_as_a_failure(
    main: Main,
) -> None:
    status, out, err = main(
        "sft", "--multirun", *TINY, *QUICK, "name=grid", "train.logging_steps=1", "data.max_length=9,99,-1"
    )
    assert status == 2
    assert "too_long" in err
    assert "runs/sft/grid/2: data.max_length is -1: it must be at least 1" in err
    assert [path.parent.name for path in Path("runs/sft/grid").glob("*/run.json")] == ["1"]
    assert "sweep     data.max_length=99; run runs/sft/grid/1" in out
    assert re.search(r"^runs/sft/grid/1  data.max_length=99  \d\.\d+  the best$", out, re.MULTILINE)
    sweep = json.loads(Path("runs/sft/grid/sweep.json").read_text())
    assert [run["overrides"] for run in sweep["runs"]] == [[f"data.max_length={n}"] for n in (9, 99, -1)]
    _, _, err = main("compare", *map(str, sorted(Path("runs/sft/grid").iterdir())), "--prompt", "Hi")
    assert err.splitlines() == [
        "alignkit: runs/sft/grid/multirun.yaml is skipped: it is no finished run of the sweep",
        "alignkit: runs/sft/grid/report.html is skipped: it is no finished run of the sweep",
        "alignkit: runs/sft/grid/sweep.json is skipped: it is no finished run of the sweep",
        "alignkit: there is nothing to compare: name two models or more",
    ]


def test_with_json_the_record_is_all_that_standard_output_has(alignkit: Run, main: Main) -> None:
    done = alignkit("sft", *TINY, *QUICK, "name=one", "--json")
    assert done.returncode == 0, done.stderr
    assert "next: alignkit generate runs/sft/one" in done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line) == {"folder": "runs/sft/one", **json.loads(Path("runs/sft/one/run.json").read_text())}
    assert json.loads(line)["status"] == "finished"
    status, out, _ = main("sft", *TINY, *QUICK, "name=grid", "--multirun", "--json", "seed=1,2")
    assert (status, json.loads(out)) == (0, json.loads(Path("runs/sft/grid/sweep.json").read_text()))
    assert main("sft", *TINY, *QUICK, "name=one", "--json")[:2] == (2, "")
    status, _, err = main("sft", *TINY, "--json", "--cfg", "job")
    assert (status, err) == (
        2,
        "alignkit: --json prints the record of a run, --cfg and --info run nothing: give one of them\n",
    )


def test_the_same_words_in_another_order_are_the_same_job(main: Main) -> None:
    shown = {
        main(*words)[1]
        for words in (
            ["sft", "--cfg", "job", "model=tiny_gpt2", "data.path=rows.jsonl", "seed=3"],
            ["sft", "seed=3", "data.path=rows.jsonl", "--cfg", "job", "model=tiny_gpt2"],
        )
    }
    assert len(shown) == 1


def test_json_is_all_that_inspect_prints_and_its_own_golden_file(main: Main) -> None:
    status, out, err = main("inspect", "sft", *TINY, "--json")
    assert (status, err) == (0, "")
    assert [json.loads(line)["supervised_text"] for line in out.splitlines()] == ["Yo<|eos|>", "Do<|eos|>"]
    Path("golden.jsonl").write_text(out)
    assert main("inspect", "sft", *TINY, "--assert", "golden.jsonl")[:2] == (
        0,
        "2 rows are the same as in golden.jsonl\n",
    )
    status, out, err = main("inspect", "sft", *TINY, "--assert", "golden.jsonl", "template=user_bot")
    assert (status, out) == (2, "")
    assert [line.partition(": was ")[0] for line in err.splitlines()] == [
        "alignkit: rows.jsonl:1: its tokens changed",
        "alignkit: rows.jsonl:2: its tokens changed",
    ]


def test_inspect_loads_no_model_and_makes_no_run(main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit.stages.sft.run.load_model", bug)
    status, out, _ = main("inspect", "sft", *TINY, "--rows", "1", "--html", "page/rows.html")
    assert status == 0
    assert "rows.jsonl:1: " in out
    assert "rows.jsonl:2: " not in out
    assert out.endswith("page: page/rows.html\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page", "rows.jsonl"]


def test_a_run_in_a_process_of_its_own_speaks_only_our_words_and_can_be_asked(alignkit: Run, main: Main) -> None:
    done = alignkit("sft", *TINY, *QUICK, "train.logging_steps=1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    table = ["          train", "kept          2", "all rows      2"]
    assert done.stdout.splitlines()[:5] == [*table, "columns used: instruction (prompt), output (response)", ""]
    assert done.stdout.splitlines()[-1] == 'next: alignkit generate runs/sft/default --prompt "…"'
    assert not re.search("warning|deprecat", done.stdout, re.IGNORECASE)
    status, out, _ = main("generate", "runs/sft/default", "--prompt", "Hi", "sampling.max_new_tokens=2")
    assert status == 0
    assert out.startswith("### Instruction:\nHi\n\n### Response:\n")
    status, _, err = main("generate", "runs/sft/defalt", "--prompt", "Hi")
    assert status == 2
    assert err == "alignkit: model.name: there is no folder runs/sft/defalt; did you mean 'runs/sft/default'?\n"


def test_telemetry_of_the_libraries_below_is_switched_off(main: Main) -> None:
    main("--version")
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == os.environ["DO_NOT_TRACK"] == "1"
