"""A damaged file of a run ends every command in a line that names it, and never in an internal error."""

import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignkit.cli import app
from alignkit.errors import AlignkitError

SMALL = [
    *("model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=8", "model.config.n_head=2"),
    *("model.config.n_inner=8", "model.config.n_positions=256", "train.report_to=none", "template=instruction"),
]
ONE_STEP = ["train.max_steps=1", "samples=1", "sampling.max_new_tokens=2", "data.eval_path=rows.jsonl"]
PAIRS = ["data.path=pairs.jsonl", "data.eval_path=pairs.jsonl"]
RUN, REWARD = "runs/sft/it", "runs/reward/it"
ON_RUN = ["name=b", "model=run", f"model.name={RUN}", "train.report_to=none", "train.max_steps=1", "template=native"]

COMMANDS: dict[str, list[str]] = {
    "generate": ["generate", RUN, "--prompt", "Say one.", "sampling.max_new_tokens=2"],
    "generate --out": ["generate", RUN, "--prompt", "Say one.", "sampling.max_new_tokens=2", "--out", "out.jsonl"],
    "next": ["next", RUN, "--prompt", "Say one."],
    "compare --reward": [
        *("compare", RUN, f"{RUN}/base", "--prompt", "Say one.", "sampling.max_new_tokens=2", "--reward", REWARD),
    ],
    "chat": ["chat", RUN, "sampling.max_new_tokens=2"],
    "evaluate": ["evaluate", RUN, "sampling.max_new_tokens=2", "num_prompts=1"],
    "evaluate --pairs": [
        *("evaluate", RUN, "--pairs", "pairs.jsonl", "--reference", f"{RUN}/base", "--reward", REWARD),
        *("sampling.max_new_tokens=2", "num_prompts=1"),
    ],
    "merge": ["merge", RUN, "merged"],
    "verify": ["verify", RUN],
    "runs": ["runs"],
    "runs show": ["runs", "show", RUN],
    "runs diff": ["runs", "diff", RUN, REWARD],
    "repeat": ["repeat", RUN],
    "report": ["report", RUN],
    "report of reward": ["report", REWARD],
    "smoke": ["smoke", "sft", *ON_RUN, "data.path=rows.jsonl"],
    "export": ["export", RUN, "--to", "vllm"],
    "plan": ["plan", "sft", *ON_RUN, "data.path=rows.jsonl"],
    "score": ["score", REWARD, "--pairs", "pairs.jsonl"],
    "sft": ["sft", *ON_RUN, "data.path=rows.jsonl", "samples=0"],
    "resume": ["sft", "name=it", *SMALL, *ONE_STEP, "lora=default", "data.path=rows.jsonl", "resume=true"],
    "reward": ["reward", *ON_RUN, *PAIRS],
    "dpo": ["dpo", *ON_RUN, *PAIRS, "samples=0", f"reference.name={RUN}"],
    "inspect": ["inspect", "sft", *ON_RUN, "data.path=rows.jsonl"],
    "inspect reward": ["inspect", "reward", *ON_RUN, *PAIRS],
    "ppo": [
        *(
            "ppo",
            *ON_RUN[:-2],
            "template=native",
            "data.path=rows.jsonl",
            f"reward=[{{model: {REWARD}, standardise: true}}]",
        ),
        *("ppo.num_updates=1", "ppo.num_prompts=8", "ppo.num_mini_batches=1", "sampling.max_new_tokens=2", "samples=0"),
        *("value.model=own", f"value.start={REWARD}"),
    ],
}
FILES = {
    RUN: [
        *("run.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"),
        *("samples.jsonl", "checksums.json", "base/config.json", "base/generation_config.json"),
        *("metrics.jsonl", "rows.jsonl", "first_rows.json"),
    ],
    REWARD: [
        *("run.json", "config.json", "tokenizer.json", "tokenizer_config.json", "score.json", "checksums.json"),
        "report_card.json",
    ],
    ".": ["out.jsonl.settings.json"],
}
# What reads the records of runs alone, and is quick.
READERS = ["runs", "runs show", "runs diff", "report", "report of reward"]
READ = ["run.json", "metrics.jsonl", "rows.jsonl", "samples.jsonl", "first_rows.json", "report_card.json"]
ODD: list[Any] = [None, True, -1, 1e400, float("nan"), "x", "", [], [1], {}, {"a": 1}, [[[]]], "\x1b[31m", 10**30]
PLACES = [f"{folder}/{file}" for folder, files in FILES.items() for file in files]
# Words in place of the whole file, or of every value in it.
WHOLE = {"cut short": '{"a": ', "not UTF-8": "\udcff", "a list": "[1]", "null": "null", "a text": '"x"', "empty": "{}"}
VALUES: dict[str, Any] = {"lists": [7], "texts": "x", "numbers": -3, "objects": {"a": 1}, "nulls": None}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "rows.jsonl").write_text('{"prompt": "Say one.", "completion": "one"}\n' * 8)
    pair = {"prompt": "Say one.", "chosen": "one", "rejected": "two"}
    (folder / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        said = [
            said_of(["sft", "name=it", *SMALL, *ONE_STEP, "lora=default", "data.path=rows.jsonl"]),
            said_of(["reward", "name=it", *SMALL, "train.max_steps=1", *PAIRS]),
            said_of(COMMANDS["generate --out"]),
        ]
    assert said == ["", "", ""]
    return folder


def said_of(words: list[str]) -> str:
    """What a command says as it fails; empty where it does not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO("Say one.\n"))  # what is typed in a chat
        try:
            app(args=words, standalone_mode=False)
        except AlignkitError as error:
            return str(error)
    return ""


def damage(path: Path, how: str) -> None:
    if how in WHOLE:
        path.write_bytes(WHOLE[how].encode(errors="surrogateescape"))
        return
    text = path.read_text()
    contents = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    path.write_text("".join(json.dumps(dict.fromkeys(content, VALUES[how])) + "\n" for content in contents))


def before_checksums(folder: Path) -> None:
    """As a run that was made before results had them: its files are read as they are."""
    for run in (RUN, REWARD):
        (folder / run / "checksums.json").unlink()
        record = json.loads((folder / run / "run.json").read_text())
        (folder / run / "run.json").write_text(json.dumps({key: record[key] for key in record if key != "format"}))


def fails(made: Path, tmp_path: Path, place: str, how: str, command: str, *, sealed: bool) -> str:
    """The internal error of a command on runs with a damaged file; empty where there is none."""
    folder = tmp_path / "it"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder)
    if not sealed:
        before_checksums(folder)
    if not (folder / place).is_file():
        return ""
    damage(folder / place, how)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        try:
            said_of(COMMANDS[command])
        except BaseException as error:
            return f"{command} on {place} ({how}): {type(error).__name__}: {str(error)[:120]}"
    return ""


def test_every_command_is_tried() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    commands |= {group.name for group in app.registered_groups if group.name}
    # demo reads no run, and the steps of run are these commands
    assert {words[0] for words in COMMANDS.values()} == commands - {"demo", "run"}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_on_a_sound_run_ends_well(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    shutil.copytree(made, tmp_path / "it")
    monkeypatch.chdir(tmp_path / "it")
    assert said_of(COMMANDS[command]) == ""


@pytest.mark.parametrize(
    ("place", "command"),
    [
        (f"{RUN}/adapter_config.json", "generate"),
        (f"{RUN}/base/config.json", "generate"),
        (f"{RUN}/tokenizer.json", "generate"),
        (f"{RUN}/run.json", "verify"),
        (f"{RUN}/samples.jsonl", "verify"),
        (f"{REWARD}/score.json", "ppo"),
        ("./out.jsonl.settings.json", "generate --out"),
    ],
)
def test_a_file_of_a_wrong_shape_is_no_internal_error(made: Path, tmp_path: Path, place: str, command: str) -> None:
    assert fails(made, tmp_path, place, "lists", command, sealed=False) == ""


def test_a_run_whose_record_is_lost_goes_on_from_its_checkpoints(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made, tmp_path / "it")
    monkeypatch.chdir(tmp_path / "it")
    record = Path(RUN, "run.json")
    for damaged in ("", "[]", '{"status": 7}'):
        record.write_text(damaged)
        first = [word for word in COMMANDS["resume"] if word != "resume=true"]
        assert "run.json is lost or damaged, and checkpoint-1 is there: resume=true goes on" in said_of(first)
    record.unlink()
    capsys.readouterr()
    assert said_of(COMMANDS["resume"]) == ""
    said = capsys.readouterr().out
    assert "going on from runs/sft/it/checkpoints/checkpoint-1" in said
    assert "whether it began with them is not known" in said
    assert json.loads(record.read_text())["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("how", [*WHOLE, *VALUES])
@pytest.mark.parametrize("place", PLACES)
def test_no_command_ends_in_an_internal_error(made: Path, tmp_path: Path, place: str, how: str) -> None:
    # Every command on every damage takes hours; which two a damage meets is drawn from its own name.
    commands = random.Random(f"{place} {how}").sample(list(COMMANDS), 2)
    found = [fails(made, tmp_path, place, how, command, sealed=False) for command in commands]
    assert [error for error in found if error] == []


def changed(value: Any, source: random.Random) -> Any:
    """The same value, but for one that was taken out or replaced somewhere in it."""
    if not isinstance(value, (dict, list)) or not value or source.random() < 0.15:
        return source.choice(ODD)
    place = source.choice(list(value)) if isinstance(value, dict) else source.randrange(len(value))
    other = value.copy()
    if isinstance(value, dict) and source.random() < 0.15:
        del other[place]
    else:
        other[place] = changed(value[place], source)
    return other


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_a_value_changed_anywhere_in_a_record_is_no_internal_error(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    source = random.Random(seed)
    path = source.choice([made / run / name for run in (RUN, REWARD) for name in READ if (made / run / name).is_file()])
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    at = source.randrange(len(lines))
    lines[at] = json.dumps(changed(json.loads(lines[at]), source))
    shutil.copytree(made, tmp_path / "it", ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / "it" / path.relative_to(made)).write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path / "it")
    for command in READERS:
        said_of(COMMANDS[command])
