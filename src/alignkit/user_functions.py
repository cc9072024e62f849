"""Functions of the user's own, named in a setting: formats and rewards."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from alignkit.errors import ConfigError, did_you_mean


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
        guess = did_you_mean(name, [key for key, value in vars(module).items() if callable(value)])
        raise ConfigError(f"{setting}: {place} has no function '{name}'{guess}")
    return function


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"alignkit_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks up the module it was written in
    spec.loader.exec_module(module)
    return module
