"""Functions of the user's own, named in a setting: formats and rewards."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from alignkit.errors import ConfigError, did_you_mean


def function_name(function: str | Callable[..., Any]) -> str:
    """Return what a function is called in messages and records: `module:function`, or as a setting names it."""
    if isinstance(function, str):
        return function
    named = function if hasattr(function, "__qualname__") else type(function)  # an object that can be called
    return f"{named.__module__}:{named.__qualname__}"


@lru_cache
def load_function(spec: str, setting: str = "data.format") -> Callable[..., Any]:
    """Load a function of the user's own, such as a format.

    Args:
        spec: `module:function` or `file.py:function`; a module may be a file in the current folder.
        setting: where it was named, for the messages.

    Raises:
        ConfigError: there is no such module, file or function, or importing it fails.
    """
    place, _, name = spec.rpartition(":")
    if not place.strip(".") or not name.isidentifier():
        raise ConfigError(f"{setting}: '{spec}' must be module:function or file.py:function")
    path = Path(place) if place.endswith(".py") else Path(*place.split(".")).with_suffix(".py")
    if place.endswith(".py") and not path.is_file():
        raise ConfigError(f"{setting}: {spec}: there is no file {place}")
    try:
        module = _load_file(path) if path.is_file() else importlib.import_module(place)
    except Exception as error:  # the user's code may fail in any way, and it is theirs to fix
        raise ConfigError(f"{setting}: {spec} cannot be imported: {type(error).__name__}: {error}") from error
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        if name in vars(module):
            raise ConfigError(f"{setting}: {spec} is no function: its type is {type(function).__name__}")
        guess = did_you_mean(name, [key for key, value in vars(module).items() if callable(value)])
        raise ConfigError(f"{setting}: {place} has no function '{name}'{guess}")
    return function


def local_modules(file: Path) -> list[Path]:
    """Return the files that a file of the user's imports, at its top or in its functions, and those that these import.

    Of them those below the file's own folder or the current one: what is installed is no work of the user's. A module
    whose name is made up as the program runs is not found.

    Args:
        file: of Python; it can be imported.
    """
    roots = (file.resolve().parent, Path.cwd())
    found, waiting = {file.resolve()}, [file.resolve()]
    while waiting:
        new = {module.resolve() for module in _imported(waiting.pop(), roots)} - found
        found |= new
        waiting += new
    return sorted(found - {file.resolve()})


def _imported(file: Path, roots: Sequence[Path]) -> Iterator[Path]:
    with suppress(SyntaxError):  # it is never imported, then
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from _files_of(alias.name.split("."), roots)
            elif isinstance(node, ast.ImportFrom):
                module = node.module.split(".") if node.module else []
                folders = [file.parents[node.level - 1]] if node.level else roots
                for alias in node.names:
                    yield from _files_of([*module, alias.name], folders)


def _files_of(names: list[str], folders: Sequence[Path]) -> list[Path]:
    """The files of a dotted name: of a module, and of the packages that it is in."""
    for folder in folders:
        if files := list(_files_below(folder, names)):
            return files
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(names[0])  # elsewhere on the path of imports
        origin = Path(spec.origin) if spec and spec.has_location and spec.origin else None
        if spec and origin and any(origin.is_relative_to(folder) for folder in folders) and not _is_installed(origin):
            folder = origin.parents[1] if spec.submodule_search_locations else origin.parent
            return list(_files_below(folder, names))
    return []


def _files_below(folder: Path, names: list[str]) -> Iterator[Path]:
    for name in names:
        if (file := folder / f"{name}.py").is_file():
            yield file
            return
        folder /= name
        if (file := folder / "__init__.py").is_file():
            yield file


def _is_installed(file: Path) -> bool:
    ours, python = Path(__file__).parent, sysconfig.get_path("stdlib")
    return file.is_relative_to(ours) or file.is_relative_to(python) or "site-packages" in file.parts


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"alignkit_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks up the module it was written in
    spec.loader.exec_module(module)
    return module
