"""What the package imports stands in pyproject.toml, and nothing else: pins alone would hide what is missing there."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Loaded by transformers, which quantizes with the first and writes for the others.
OF_TRANSFORMERS = {"bitsandbytes", "mlflow", "tensorboard", "trackio", "wandb"}


def distribution(requirement: str) -> str:
    """`torch>=2.11` → `torch`, and `types_PyYAML` → `types-pyyaml`."""
    found = re.match(r"[\w.-]+", requirement)
    assert found
    return found[0].lower().replace("_", "-")


def imported() -> set[str]:
    """The distributions of all that is imported in the package, also inside functions."""
    names: set[str] = set()
    for path in (ROOT / "src" / "alignkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    known = packages_distributions()
    ours = names - sys.stdlib_module_names - {"alignkit", "_typeshed"}  # the last is there for type checkers alone
    return {distribution(known.get(name, [name])[0]) for name in ours}


def test_dependencies_are_what_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [needed for name, needed in project["optional-dependencies"].items() if name != "dev"]
    declared = {distribution(text) for text in sum(extras, project["dependencies"])}
    assert declared == imported() | OF_TRANSFORMERS
