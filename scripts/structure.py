"""Print how the code is built: files, functions, documentation, and who imports whom.

python scripts/structure.py                      # this checkout
python scripts/structure.py OTHER/src/alignkit src/alignkit   # one column each, to compare
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

PACKAGE = Path(__file__).parents[1] / "src" / "alignkit"
Graph = dict[str, set[str]]


def module_graph(folder: Path) -> Graph:
    """Which files of a folder import which others of it, also inside functions.

    Args:
        folder: a package, or scripts that import each other by their bare names.

    Returns:
        By the dotted name of each file below the folder, the names of the files that it imports.
    """
    modules = {_dotted(path, folder): path for path in sorted(folder.rglob("*.py"))}
    start = f"{folder.name}." if "__init__" in modules else ""
    return {name: _imported(path, start) & modules.keys() - {name} for name, path in modules.items()}


def rooms(graph: Graph, folder: str = "") -> Graph:
    """Which entries of a folder import which others of it: its files, and each folder in it as a whole."""
    start = f"{folder}." if folder else ""
    inside = {name: name.removeprefix(start).split(".")[0] for name in graph if name.startswith(start) and name}
    found: Graph = {entry: set() for entry in inside.values()}
    for name, entry in inside.items():
        found[entry] |= {inside[other] for other in graph[name] & inside.keys()} - {entry}
    return found


def circles(graph: Graph) -> list[list[str]]:
    """Chains of imports that end where they begin; after each its last import is cut to look for the next."""
    graph = {name: set(imported) for name, imported in graph.items()}
    found = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            # The sorter names who is imported before who imports.
            circle: list[str] = error.args[1][::-1]
            found.append(circle)
            graph[circle[0]].discard(circle[1])
        else:
            return found


def figures(folder: Path) -> dict[str, str]:
    """What is printed of a package: a name and a value each. Docstrings count as lines of a file, not of a function."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}
    lines, path = max((len(text.splitlines()), path) for path, text in texts.items())
    nodes = [node for text in texts.values() for node in ast.walk(ast.parse(text))]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    longest = max(functions, key=_length)
    public = [node for node in functions if not node.name.startswith("_")]
    documented = sum(ast.get_docstring(node) is not None for node in public)
    graph = module_graph(folder)
    return {
        "files": str(len(texts)),
        "lines": str(sum(len(text.splitlines()) for text in texts.values())),
        "longest file": f"{lines} lines ({path.relative_to(folder)})",
        "functions": str(len(functions)),
        "median function": f"{median(map(_length, functions)):g} lines",
        "longest function": f"{_length(longest)} lines ({longest.name})",
        "public functions documented": f"{documented / len(public):.0%} of {len(public)}",
        "circles between files": str(len(circles(graph))),
        **{f"inside {room or folder.name}": _drawn(rooms(graph, room)) for room in ("", *_folders(graph))},
    }


def _dotted(path: Path, folder: Path) -> str:
    return ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")


def _imported(path: Path, start: str) -> set[str]:
    """Names below `start` that a file imports, without it; of `from a import b` both `a` and `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix(start) for name in names if name.startswith(start)}


def _folders(graph: Graph) -> list[str]:
    """The folders directly in the package, by name."""
    return sorted({name.split(".")[0] for name in graph if "." in name})


def _drawn(graph: Graph) -> str:
    return f"{sum(map(len, graph.values()))} arrows between {len(graph)}"


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    first = node.body[0]
    docstring = 0 if ast.get_docstring(node) is None else _last(first) - first.lineno + 1
    return _last(node) - node.lineno + 1 - docstring


def _last(node: ast.stmt) -> int:
    assert node.end_lineno
    return node.end_lineno


def main() -> None:
    columns = [figures(Path(word).resolve()) for word in sys.argv[1:] or [str(PACKAGE)]]
    for name in dict.fromkeys(name for column in columns for name in column):
        print(f"{name:30}" + "".join(f"{column.get(name, ''):40}" for column in columns).rstrip())


if __name__ == "__main__":
    main()
