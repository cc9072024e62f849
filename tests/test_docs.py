"""What README and docs say can be typed, can be typed; what they show is what comes out."""

import dataclasses
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from alignkit import cli
from alignkit.data.rows.formats import FIELDS, detect_format, to_conversation
from alignkit.data.rows.keys import COLUMNS, MESSAGE_KEYS
from alignkit.data.rows.preferences import PAIR_FIELDS, detect_pairs, to_preference
from alignkit.jobs import JOBS
from alignkit.launch import compose_job
from alignkit.mistakes import in_override
from alignkit.pipeline.check import compose_all
from alignkit.pipeline.file import read_pipeline

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}

# The commands in the bash blocks of each page, and how many of them a test runs to the end. A page that gains or loses
# one says so here: no command is left out silently.
NUM_COMMANDS = {
    "README.md": (12, 6),
    "docs/commands.md": (40, 35),
    "docs/configuration.md": (4, 4),
    "docs/data.md": (2, 2),
    "docs/engine.md": (6, 0),
    "docs/performance.md": (7, 0),
    "docs/ppo.md": (9, 4),
    "docs/python.md": (0, 0),
    "docs/scaling.md": (11, 2),
    "docs/serving.md": (8, 6),
    "docs/settings.md": (0, 0),
}
# A command of ours runs unless one of its words names what no test may fetch or train.
NEEDS = {
    "config=sft/": "a model from the hub",
    "config=ppo/": "models from the hub",
    "config=my.yaml": "a model from the hub",
    "config=my_ppo.yaml": "runs of one's own model",
    "config=my_engine.yaml": "runs of one's own model, and servers",
    "runs/sft/smollm2-135m-lora": "a run of a model from the hub",
    "--tasks": "lm-eval and its tasks",
    "--server": "a server",
    "engine.servers=": "a server",
}
MANY = 30  # commands of a page that take a minute together
LAUNCHERS = ("torchrun", "accelerate", "srun")
WORD = r"[^\W\d_]{4,}"
LANGUAGES = {"bash", "python", "yaml", "console", "text"}
OPTIONAL_FILES = {"adapter_model.safetensors"}  # a run that trains every weight has none

Main = Callable[..., int]


class Command(NamedTuple):
    """A command of a page."""

    page: str
    words: list[str]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"

    @property
    def ours(self) -> list[str] | None:
        """What `alignkit` is given, by itself or as a module under a launcher; None where a command is another one."""
        return after_alignkit(self.words)

    @property
    def runs(self) -> bool:
        needy = any(word.startswith(need) for word in self.words for need in NEEDS)
        return self.words[0] == "alignkit" and (not needy or "--cfg" in self.words)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[page], re.MULTILINE | re.DOTALL)


def after_alignkit(words: list[str]) -> list[str] | None:
    if words[0] == "alignkit":
        return words[1:]
    found = [i for i, pair in enumerate(pairwise(words)) if pair == ("-m", "alignkit")]
    return words[found[0] + 2 :] if found else None


def commands(page: str) -> Iterator[Command]:
    """The words of each command of a page, comments left out."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                if words := shlex.split(part, comments=True):
                    yield Command(page, words)


def mentioned(page: str) -> Iterator[Command]:
    """The commands that a page names inside a sentence, where they are whole."""
    prose = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    for found in re.findall(r"`(alignkit [a-z]+ [^`…A-Z]*[=-][^`…A-Z]+)`", prose):
        yield Command(page, shlex.split(found))


COMMANDS = [command for page in TEXTS for command in commands(page)]
OURS = [command for command in COMMANDS if command.ours is not None]
DEMO = [block for page in TEXTS for block in blocks(page, "text") if "answered politely" in block]
MENTIONED = [command for page in TEXTS for command in mentioned(page)]


@pytest.fixture(scope="module")
def readme_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the reader of the README has: rows, files of the pages, and the README's runs."""
    folder = tmp_path_factory.mktemp("readme")
    fill(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_page("README.md", call_main(patch))
    return folder


def fill(folder: Path) -> None:
    words = [f"{first}{second}" for first in "abcde" for second in "fghi"]
    rows = [{"instruction": f"Say {word}.", "output": word} for word in words]
    (folder / "data.json").write_text(json.dumps(rows))
    pairs = [{"prompt": f"Say {word}.", "chosen": f"{word}!", "rejected": "no"} for word in words]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    (folder / "prompts.txt").write_text("Repeat the word moon.\nSay goodbye to the toad.\n")
    for page in TEXTS:
        for language, ending in (("yaml", "yaml"), ("python", "py")):
            for block in blocks(page, language):
                if found := re.match(rf"# (\S+\.{ending})\b", block):
                    (folder / found[1]).write_text(block, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands are typed that are only composed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESUME", "false")
    fill(tmp_path)
    return tmp_path


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Main:
    return call_main(monkeypatch)


def call_main(monkeypatch: pytest.MonkeyPatch) -> Main:
    def main(words: list[str]) -> int:
        monkeypatch.setattr(sys, "argv", ["alignkit", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO("Up?\n"))
        try:
            cli.main()
        except SystemExit as done:
            return int(done.code or 0)
        return 0

    return main


def run_page(page: str, main: Main) -> None:
    """Run the commands of a page in the order they are written, and its Python, with fewer steps and tokens."""
    for command in commands(page):
        if command.runs:
            assert main([*(command.ours or []), *shorter(command)]) == 0, str(command)
    for block in blocks(page, "python"):
        if not block.startswith("# "):
            exec(compile(block, page, "exec"), {"__name__": "__main__"})


def shorter(command: Command) -> list[str]:
    if "name=longer" in command.words:
        return ["sampling.max_new_tokens=8", "train.max_steps=10"]
    short = {"sft": "sampling.max_new_tokens=8", "dpo": "sampling.max_new_tokens=8", "ppo": "ppo.num_updates=2"}
    return [short[command.words[1]]] if command.words[1] in short else []


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command and its parameters, as Typer reads them; a wrong flag is an error."""
    command: Any = typer.main.get_command(cli.app)
    context = command.make_context("alignkit", list(words))
    name = ""
    while (rest := [*context._protected_args, *context.args]) and hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return name, context.params


def test_no_command_is_left_out() -> None:
    numbers = dict.fromkeys(TEXTS, (0, 0))
    for command in COMMANDS:
        total, run = numbers[command.page]
        numbers[command.page] = (total + 1, run + command.runs)
    assert numbers == NUM_COMMANDS


def test_there_are_commands_of_every_kind() -> None:
    every = {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    every |= {group.name for group in cli.app.registered_groups}
    typed = {words[0] for command in OURS if (words := command.ours)}
    assert typed | {"demo"} == every  # `scripts/demo.sh` runs the demo
    assert set(re.findall(r"^\| `alignkit (\w+)` \|", TEXTS["README.md"], re.MULTILINE)) == every
    assert {command.words[0] for command in COMMANDS} <= {"bash", "source", "python", "alignkit", *LAUNCHERS}


@pytest.mark.parametrize("page", TEXTS)
def test_a_block_is_of_a_language_that_is_tested(page: str) -> None:
    fences = re.findall(r"^```(.*)$", TEXTS[page], re.MULTILINE)
    assert set(fences[::2]) <= LANGUAGES
    assert set(fences[1::2]) <= {""}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", [*OURS, *MENTIONED], ids=str)
def test_a_command_is_understood_and_its_job_composes(command: Command) -> None:
    name, given = parsed([os.path.expandvars(word) for word in command.ours or []])
    if given.keys() & {"root", "into", "to"}:  # `alignkit runs`, `alignkit repeat` and `alignkit export` have no job
        return
    if name == "run":
        compose_all(read_pipeline(given["words"]))
        return
    if "config_dir" not in given:  # no stage: it takes runs, and what is left are settings
        settings = [word for word in given["words"] or [] if "=" in word]
        needed = ["data.path=d"] if name in ("evaluate", "score") and not given.get("tasks") else []
        stage = "tasks" if given.get("tasks") else name
        job = compose_job(stage, [*needed, *settings], model={"name": given.get("run", "m")})
    else:
        job = compose_job(given.get("stage", name), given["words"] or [], config_dir=given["config_dir"])
        assert job.name != "default"
    assert job.model.name


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.words[0] in ("bash", "python")], ids=str)
def test_a_script_is_there_and_knows_its_flags(command: Command) -> None:
    path = ROOT / command.words[1]
    assert path.read_text().startswith("#!/usr/bin/env bash\n" if command.words[0] == "bash" else '"""')
    if flags := {word for word in command.words if word.startswith("--")}:
        known = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, check=True).stdout
        assert flags <= set(re.findall(r"--[a-z-]+", known))


def test_readme_runs_from_a_fresh_clone(readme_runs: Path) -> None:
    files = re.search(r"The run directory has\n\n(.*?)\n\n", TEXTS["README.md"], re.DOTALL)
    assert files
    named = {name for row in files[1].splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    optional = set(OPTIONAL_FILES)
    if not importlib.util.find_spec("tensorboard"):
        optional.add("tensorboard/")
    found = {f"{path.name}{'/' if path.is_dir() else ''}" for path in (readme_runs / "runs/sft/smoke").iterdir()}
    assert {*named - optional, "config.json", "tokenizer_config.json"} == found
    assert (readme_runs / "runs/sft/notebook/model.safetensors").exists()


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow) if NUM_COMMANDS[page][1] > MANY else page
        for page in TEXTS
        if page != "README.md" and (NUM_COMMANDS[page][1] or blocks(page, "python"))
    ],
)
def test_a_page_runs_after_the_readme_and_shows_what_comes_out(
    page: str,
    readme_runs: Path,
    tmp_path: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "page"
    shutil.copytree(readme_runs, folder, symlinks=True)
    monkeypatch.chdir(folder)
    run_page(page, main)
    heard = capsys.readouterr()
    printed = heard.out + heard.err + "".join(path.read_text() for path in folder.glob("*.jsonl"))
    for block in blocks(page, "text"):
        if block not in DEMO:  # fewer steps give other numbers; what is around them stays
            assert set(re.findall(WORD, block)) - set(re.findall(WORD, printed)) == set(), block
    for command, output in shown(page):
        main(after_alignkit(shlex.split(command)) or [])
        heard = capsys.readouterr()
        assert output == heard.out + heard.err
    if "--multirun" in TEXTS[page]:
        assert sorted(run.parent.name for run in Path("runs/sft/sweep").glob("*/run.json")) == ["0", "1", "2"]


def shown(page: str) -> Iterator[tuple[str, str]]:
    """The commands of a page's console blocks, each with all that it prints."""
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


def test_the_tables_of_the_demo_have_the_columns_that_it_prints() -> None:
    source = (ROOT / "src" / "alignkit" / "demo" / "__init__.py").read_text(encoding="utf-8")
    assert len(DEMO) == 2
    for block in DEMO:
        heads = [line for line in block.splitlines() if re.match("prompt |[0-9]+ prompts ", line)]
        assert len(heads) == 2
        assert [name for head in heads for name in re.split("  +", head)[1:] if f'"{name}"' not in source] == []


@pytest.mark.parametrize("page", TEXTS)
def test_yaml_of_a_page_is_used_by_a_command_of_that_page(page: str) -> None:
    used = {word for command in commands(page) for word in command.words}
    for block in blocks(page, "yaml"):
        found = re.match(r"# (\S+\.yaml)\n", block)
        assert found, "a block of YAML begins with the name of its file"
        assert f"config={found[1]}" in used


def table_script(name: str = "settings_table") -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_settings_are_those_that_the_script_prints() -> None:
    tables = re.findall(
        r"<!-- settings: python scripts/settings_table.py (.*?) -->\n(.*?)<!-- /settings -->",
        "".join(TEXTS.values()),
        re.DOTALL,
    )
    assert {words.split()[0] for words, _ in tables} == set(JOBS)
    script = table_script()
    for words, table in tables:
        assert table.strip() == script.table(*words.split())


def test_the_tables_of_estimators_are_those_that_the_script_prints() -> None:
    tables = re.findall(
        r"<!-- estimators: python scripts/estimators_table.py (\w+) -->\n(.*?)<!-- /estimators -->",
        TEXTS["docs/ppo.md"],
        re.DOTALL,
    )
    assert [kind for kind, _ in tables] == ["estimators", "settings"]
    script = table_script("estimators_table")
    for kind, table in tables:
        assert table.strip() == script.table(kind)


@pytest.mark.parametrize("command", JOBS)
def test_the_page_of_settings_names_the_sections_of_each_command(command: str) -> None:
    found = re.search(rf"^## {command}\n\n(.*?)\n(\n|$)", TEXTS["docs/settings.md"], re.MULTILINE | re.DOTALL)
    assert found
    sections = {item.name for item in dataclasses.fields(JOBS[command]) if dataclasses.is_dataclass(section(item))}
    named = set(re.findall(r"`(\w+)`", found[1].partition(" ha")[2].partition(";")[0]))
    assert named - {"sft"} == sections


def section(item: dataclasses.Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else None


def test_rows_of_the_tables_of_formats_are_read_as_those_formats() -> None:
    found = re.findall(r"^\| `(\w+)` \| `(\{.*\})` \|$", TEXTS["docs/data.md"], re.MULTILINE)
    assert {name for name, _ in found} == {*FIELDS, *PAIR_FIELDS} - {"prompt"}
    for name, text in found:
        row = json.loads(text)
        detect, convert = (detect_pairs, to_preference) if name in PAIR_FIELDS else (detect_format, to_conversation)
        assert detect(row.keys(), row) == name
        assert convert(row, name, {})


def test_the_tables_of_keys_say_what_the_code_makes_of_each() -> None:
    section = TEXTS["docs/data.md"].partition("## Every key of a row")[2].partition("\n## ")[0]
    found = [
        (name, becomes)
        for names, becomes in re.findall(r"^\| (`.+?`) \| (.+) \|$", section, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    ]
    assert sorted(found) == sorted((name, str(use)) for keys in (COLUMNS, MESSAGE_KEYS) for name, use in keys.items())


def test_settings_named_in_the_text_exist() -> None:
    prose = re.sub(r"^```.*?^```", "", "\n".join(TEXTS.values()), flags=re.MULTILINE | re.DOTALL)
    found = [word for words in re.findall(r"`([a-z_.]+=[^`]+)`", prose) for word in re.split(" (?=[a-z_.]+=)", words)]
    words = [word for word in found if not word.startswith(("config=", "key="))]
    assert len(words) > 3
    assert [word for word in words if all(in_override(stage, word, None, lambda _: False) for stage in JOBS)] == []


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", TEXTS[page]):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [title.lower().replace(" ", "-") for title in titles]


def test_the_readme_links_every_page_and_is_short() -> None:
    assert [page for page in TEXTS if page != "README.md" and f"]({page})" not in TEXTS["README.md"]] == []
    assert len(TEXTS["README.md"].splitlines()) <= 180


@pytest.mark.parametrize("page", [page for page in TEXTS if page != "README.md"])
def test_a_page_says_first_what_it_answers(page: str) -> None:
    assert TEXTS[page].splitlines()[2].startswith("This page answers: ")


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def named_paths() -> Iterator[str]:
    """Each file or folder that CONTRIBUTING names, in its sentences or in its drawings."""
    for word in re.findall(r"[\w./<>-]*/[\w./<>-]*|[\w-]+\.(?:py|yaml|md|toml|txt)\b", CONTRIBUTING):
        if "NAME" not in word and not word.startswith((".venv/", "//")):
            yield word.rstrip(".")


@pytest.mark.parametrize("word", sorted(set(named_paths())))
def test_a_path_that_contributing_names_exists(word: str) -> None:
    pattern = re.sub(r"<\w+>", "*", word)
    assert [*ROOT.glob(pattern), *(ROOT / "src" / "alignkit").glob(pattern)]


@pytest.mark.parametrize(("path", "name"), re.findall(r"`([\w/.]+\.py): (\w+)`", CONTRIBUTING))
def test_a_name_that_contributing_places_in_a_file_is_there(path: str, name: str) -> None:
    text = (ROOT / "src" / "alignkit" / path).read_text(encoding="utf-8")
    assert re.search(rf"^(def |class )?{name}\b", text, re.MULTILINE)
