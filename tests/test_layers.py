"""Who may import whom: a file imports from floors below its own, and from its own folder."""

import ast
from pathlib import Path

import pytest

from structure import PACKAGE, circles, module_graph, rooms

# From the top down. Entries of one line do not know each other. A folder that is not named here has no floors inside.
FLOORS = {
    "": """
        __main__
        cli
        demo api pipeline
        repeat smoke
        launch completion
        origins
        mistakes named_files recipes
        stages commands
        planning
        ppo evaluate
        training rewards engine
        pages
        data models sampling runs
        wrong_values
        quoting yaml_size upstream terminal user_functions jobs json_files digests long_rope
        estimators home
        errors config conf
        choices
    """,
    "data": """
        views
        sets
        files encode
        rows batches
    """,
}
BENCH = Path(__file__).parents[1] / "scripts" / "bench"
GRAPH = module_graph(PACKAGE)
MEASURED = {
    "stages",
    "commands",
    "planning",
    "smoke",
    "ppo",
    "evaluate",
    "engine",
    "training",
    "rewards",
    "data",
    "models",
    "sampling",
    "runs",
}
# What takes long to import, and where it is imported at the top of a file. Elsewhere functions import it.
HEAVY = dict.fromkeys(["torch", "transformers", "trl", "peft", "datasets", "accelerate", "pyarrow"], MEASURED)
HEAVY |= {"rich": {*MEASURED, "demo"}}
# What no file elsewhere imports, not even in a function.
HYDRA = {"hydra": {"launch"}, "omegaconf": {"launch", "wrong_values", "mistakes", "jobs"}}


def floors(folder: str) -> dict[str, int]:
    """The floor of each entry of a folder; the lowest is 0."""
    lines = FLOORS[folder].split("\n")[-2:0:-1]
    return {entry: floor for floor, line in enumerate(lines) for entry in line.split()}


def drawn(folder: str) -> str:
    return f"{folder or 'alignkit'}, from the top down:{FLOORS[folder].rstrip()}".replace(" " * 8, "  ")


def imports(nodes: list[ast.stmt]) -> set[str]:
    """The packages that are imported by these statements, but for what functions in them import."""
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("folder", FLOORS, ids=lambda folder: folder or "alignkit")
def test_imports_go_down(folder: str) -> None:
    floor = floors(folder)
    graph = rooms(GRAPH, folder)
    wrong = [
        f"{entry} imports {other}"
        for entry, imported in graph.items()
        for other in sorted(imported)
        if floor[other] >= floor[entry]
    ]
    assert not wrong, drawn(folder)


@pytest.mark.parametrize("folder", FLOORS, ids=lambda folder: folder or "alignkit")
def test_every_entry_has_its_floor(folder: str) -> None:
    assert set(rooms(GRAPH, folder)) - {"__init__"} == set(floors(folder)), drawn(folder)


@pytest.mark.parametrize("folder", [PACKAGE, BENCH], ids=lambda folder: folder.name)
def test_no_imports_go_round_in_a_circle(folder: Path) -> None:
    assert circles(module_graph(folder)) == []


def test_no_command_imports_another() -> None:
    assert {name: others for name, others in rooms(GRAPH, "commands").items() if others} == {}


def test_no_stage_imports_another() -> None:
    stages = {"sft", "reward", "dpo", "ppo"}
    graph = rooms(GRAPH, "stages")
    assert [stage for stage in stages if graph[stage] & stages] == []


def test_heavy_imports_stay_in_their_rooms() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_top, anywhere = imports(tree.body), imports(list(ast.walk(tree)))
        wrong += [f"{path}: {name}" for name, allowed in HEAVY.items() if name in at_top and room not in allowed]
        wrong += [f"{path}: {name}" for name, allowed in HYDRA.items() if name in anywhere and room not in allowed]
    assert wrong == []
