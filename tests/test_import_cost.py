"""What the command line costs before it does anything, as a list of modules rather than a stopwatch."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "hydra", "omegaconf", "rich", "numpy")


def loaded(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())  # --help prints before


def test_the_command_line_imports_nothing_heavy() -> None:
    assert loaded("import alignkit.cli") & set(HEAVY) == set()


def test_help_imports_nothing_heavy() -> None:
    statement = "from alignkit.cli import app\ntry:\n    app(['sft', '--help'])\nexcept SystemExit:\n    pass"
    assert loaded(statement) & set(HEAVY) == set()


def test_the_python_interface_imports_nothing_heavy() -> None:
    assert loaded("import alignkit.api") & set(HEAVY) == set()


@pytest.mark.parametrize("words", [["generate", "m"], ["compare", "m", "n"], ["merge", "m", "out"]])
def test_a_command_with_nothing_to_do_ends_without_torch(words: list[str], tmp_path: Path) -> None:
    for name in "mn":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "gpt2"}')
        (tmp_path / name / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    statement = (
        f"import os\nos.chdir({str(tmp_path)!r})\n"
        "from alignkit.cli import app\nfrom alignkit.errors import AlignkitError\n"
        f"try:\n    app({words!r})\nexcept AlignkitError as error:\n    assert 'there is nothing to' in str(error)\n"
        "else:\n    raise SystemExit('done')"
    )
    assert loaded(statement) & {"torch", "transformers", "trl", "peft", "datasets"} == set()


def test_a_typo_is_found_without_the_trainers() -> None:
    statement = (
        "from alignkit.launch import launch\nfrom alignkit.errors import ConfigError\n"
        "try:\n    launch('sft', ['lerning_rate=1', 'train.lerning_rate=1'])\nexcept ConfigError:\n    pass"
    )
    assert loaded(statement) & {"torch", "transformers", "trl", "peft", "datasets"} == set()


def test_a_finished_run_is_refused_with_what_is_wrong_in_its_rows_without_torch(tmp_path: Path) -> None:
    for name in ("ppo", "sft"):
        (tmp_path / "runs" / name / "x").mkdir(parents=True)
        (tmp_path / "runs" / name / "x" / "run.json").write_text('{"format": 1, "status": "finished", "job": {}}')
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{\n')
    statement = (
        f"import os\nos.chdir({str(tmp_path)!r})\n"
        "from alignkit.launch import launch\nfrom alignkit.errors import ConfigError\n"
        "for stage, words in (('sft', []), ('ppo', ['reward=[{length: true}]'])):\n"
        "    try:\n        launch(stage, ['name=x', 'model=tiny_gpt2', 'data.path=d.jsonl', *words])\n"
        "    except ConfigError as error:\n        assert 'finished' in str(error) and 'd.jsonl:2: ' in str(error)\n"
        "    else:\n        raise SystemExit('done')"
    )
    assert loaded(statement) & {"torch", "transformers", "trl", "peft", "datasets"} == set()
