"""Who may import whom: a floor imports floors below it, and on its own floor only its own folder."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "alignkit"
FLOORS = {
    "errors": 0,
    "config": 0,
    "upstream": 1,
    "data": 2,
    "models": 2,
    "sampling": 2,
    "runs": 2,
    "training": 2,
    "ppo": 2.5,  # samples with `sampling`, checkpoints with `training`
    "stages": 3,
    "evaluate": 3,
    "mistakes": 4,
    "completion": 5,
    "launch": 5,
    "demo": 6,
    "cli": 7,
    "__main__": 8,
}
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "hydra", "omegaconf", "accelerate", "pyarrow", "rich"}
ALLOWED_AT_TOP = {
    0: {"omegaconf"},
    1: set(),
    2: {"torch", "transformers", "peft", "datasets", "accelerate", "pyarrow", "rich", "trl"},
    2.5: {"torch", "transformers", "peft", "accelerate"},
    3: HEAVY - {"hydra", "omegaconf"},
    4: {"hydra", "omegaconf"},
    5: {"hydra", "omegaconf"},
    6: {"rich"},
    7: set(),
    8: set(),
}


def unit_of(path: Path) -> str:
    """The folder or module directly under the package."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path, *, top_only: bool) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return names + [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if unit_of(path) not in ("__init__", "conf"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_below(path: Path) -> None:
    unit = unit_of(path)
    for name in imports(path, top_only=False):
        parts = name.split(".")
        if parts[0] != "alignkit" or len(parts) == 1:
            continue
        if parts[1] == "conf":
            continue
        other = parts[1]
        if other != unit:
            # cli reaches everything, always inside a function; see the next test
            assert FLOORS[other] < FLOORS[unit], f"{unit} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_imports_stay_on_their_floor(path: Path) -> None:
    heavy = {name.split(".")[0] for name in imports(path, top_only=True)} & HEAVY
    assert heavy <= ALLOWED_AT_TOP[FLOORS[unit_of(path)]]
