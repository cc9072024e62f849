"""What a shell is offered after TAB."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit.completion import complete
from alignkit.jobs import SftJob, settings
from alignkit.mistakes import GROUPS, group_options
from alignkit.upstream import LORA_CONFIG, LORA_OWNED, OPEN_SECTIONS, SFT_OWNED, argument_types


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("begun", "words"),
    [
        ("se", ["seed="]),
        ("data.max", ["data.max_length=", "data.max_dropped=", "data.max_row_bytes="]),
        ("model.r", ["model.revision="]),
        ("lo", ["lora=", *(f"lora.{name}=" for name in argument_types(LORA_CONFIG) if name not in LORA_OWNED)]),
        ("template", ["template=", "template.name=", "template.file="]),
        ("train.learning", ["train.learning_rate="]),
        ("lora.lora_d", ["lora.lora_dropout="]),
        ("con", ["config="]),
        ("model=ti", ["model=tiny_gpt2", "model=tiny_llama"]),
        ("template=", [f"template={name}" for name in group_options("template")]),
        ("data.overlength=", ["data.overlength=drop", "data.overlength=keep_end", "data.overlength=keep_start"]),
        ("data.overlength=keep_e", ["data.overlength=keep_end"]),
        ("data.train_on=l", ["data.train_on=last_turn"]),
        ("resume=", ["resume=true", "resume=false"]),
        ("resume=t", ["resume=true"]),
        ("seed=", []),
        ("zzz", []),
        ("model=zzz", []),
    ],
)
def test_words_by_value(begun: str, words: list[str]) -> None:
    assert complete("sft", begun) == words


def test_every_setting_and_group_is_offered_once_and_nothing_else() -> None:
    sections = {"train=", "lora=", "model.config=", "data.columns=", "template.kwargs="}
    plain = {f"{key}=" for key, *_ in settings(SftJob())} - sections
    upstream = {
        f"{section}.{name}="
        for section, (arguments, owned) in OPEN_SECTIONS["sft"].items()
        for name in argument_types(arguments)
        if name not in owned
    }
    offered = complete("sft", "")
    assert len(offered) == len(set(offered))
    assert set(offered) == plain | upstream | {"config=", *(f"{group}=" for group in GROUPS)}


def test_what_alignkit_sets_itself_is_not_offered() -> None:
    offered = set(complete("sft", "train.") + complete("sft", "lora."))
    assert not offered & {f"train.{name}=" for name in SFT_OWNED} | offered & {f"lora.{name}=" for name in LORA_OWNED}
    assert {"train.warmup_steps=", "train.report_to=", "lora.target_modules="} <= offered


def test_another_command_has_its_own_settings() -> None:
    assert complete("generate", "batch") == ["batch_size="]
    assert complete("generate", "train.") == []
    assert complete("generate", "lora") == []
    assert complete("wizard", "") == []


@pytest.fixture
def files(tmp_path: Path) -> None:
    (tmp_path / "configs" / "deep").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for name in ("a.yaml", "configs/b.yml", "configs/deep/c.yaml", "rows.jsonl", "notes.txt", ".hidden.yaml"):
        (tmp_path / name).touch()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("begun", "words"),
    [
        ("config=a", ["config=a.yaml"]),
        ("config=./", ["config=./a.yaml", "config=./configs/", "config=./other/"]),
        ("config=.h", ["config=.hidden.yaml"]),
        ("config=con", ["config=configs/b.yml", "config=configs/deep/"]),
        ("config=configs/d", ["config=configs/deep/c.yaml"]),
        ("config=o", ["config=other/"]),
        ("config=smoke/s", ["config=smoke/sft"]),
        ("config=rev", ["config=reviews/ppo", "config=reviews/reward", "config=reviews/sft"]),
        ("config=gone/", []),
        ("data.path=", [f"data.path={name}" for name in ("a.yaml", "configs/", "notes.txt", "other/", "rows.jsonl")]),
        ("data.eval_path=r", ["data.eval_path=rows.jsonl"]),
        ("template.file=n", ["template.file=notes.txt"]),
        ("model.name=o", ["model.name=other/"]),
        ("name=", []),
    ],
)
def test_files_and_folders(begun: str, words: list[str]) -> None:
    assert complete("sft", begun) == words


def test_a_path_from_the_root(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").touch()
    assert complete("sft", f"config={tmp_path}/") == [f"config={tmp_path}/a.yaml"]


def shell(program: str) -> list[str]:
    """What bash prints with `alignkit` on its path and the completion that `--install-completion` installs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    load = 'eval "$(_ALIGNKIT_COMPLETE=source_bash alignkit)"\n'
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(
        ["bash", "--norc", "-c", load + program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


# In bash the words of a command line are cut at "=", and what is offered stands for the part after it.
BASH = """
offer() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _alignkit_completion alignkit; echo "${COMPREPLY[*]}"; }
"""


@pytest.mark.usefixtures("files")
def test_bash_offers_keys_values_and_files() -> None:
    asked = [
        "alignkit insp",
        "alignkit sft --multir",
        "alignkit inspect sft data.overl",
        "alignkit sft name = x model = ti",
        "alignkit sft data.overlength =",
        "alignkit sft config = configs/d",
        "alignkit generate runs/x sampling.te",
    ]
    assert shell(BASH + "\n".join(f"offer {words}" for words in asked)) == [
        "inspect",
        "--multirun",
        "data.overlength=",
        "tiny_gpt2 tiny_llama",
        "drop keep_end keep_start",
        "configs/deep/c.yaml",
        "sampling.temperature=",
    ]


def test_zsh_hands_over_whole_words() -> None:
    environment = {
        **os.environ,
        "_ALIGNKIT_COMPLETE": "complete_zsh",
        "_TYPER_COMPLETE_ARGS": "alignkit sft data.batching=p",
    }
    command = Path(sys.executable).with_name("alignkit")
    done = subprocess.run([command], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == """_arguments '*: :(("data.batching=padded"\n"data.batching=packed"))'\n"""
