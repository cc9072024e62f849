"""Who may import whom: a floor imports floors below it, and on its own floor only its own folder."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "alignkit"
FLOORS = {
    "errors": 0,
    "config": 0,
    "functions": 1,
    "terminal": 1,
    "upstream": 1,
    "data": 2,
    "models": 2,
    "sampling": 2,
    "runs": 2,
    "training": 3,
    "rewards": 3,
    "ppo": 4,
    "stages": 5,
    "commands": 5,
    "evaluate": 4,
    "mistakes": 6,
    "completion": 7,
    "launch": 7,
    "demo": 8,
    "cli": 9,
    "__main__": 10,
}
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "hydra", "omegaconf", "accelerate", "pyarrow", "rich"}
ALLOWED_AT_TOP = {
    0: {"omegaconf"},
    1: set(),
    **{floor: HEAVY - {"hydra", "omegaconf"} for floor in (2, 3, 4, 5)},
    **{floor: {"hydra", "omegaconf"} for floor in (6, 7)},
    8: {"rich"},
    9: set(),
    10: set(),
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
