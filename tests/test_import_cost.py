"""What the command line costs before it does anything, as a list of modules rather than a stopwatch."""

import subprocess
import sys

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


def test_a_typo_is_found_without_the_trainers() -> None:
    statement = (
        "from alignkit.launch import launch\nfrom alignkit.errors import ConfigError\n"
        "try:\n    launch('sft', ['lerning_rate=1', 'train.lerning_rate=1'])\nexcept ConfigError:\n    pass"
    )
    assert loaded(statement) & {"torch", "transformers", "trl", "peft", "datasets"} == set()
