"""Files of settings that `config=` names: the user's own, and the recipes that ship with alignkit."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from alignkit.errors import ConfigError
from alignkit.jobs import name_problem

_SHOWN = 5  # names that are near to a wrong one


def recipe_folder() -> Path:
    """Return where the recipes are: `configs/` of the package, or of the source tree that an editable install is."""
    package = Path(str(resources.files("alignkit")))
    installed = package / "configs"
    return installed if installed.is_dir() else package.parents[1] / "configs"


def recipe_names(folder: Path) -> list[str]:
    """Return what `config=` takes for the files of a folder: `smoke/sft` for `smoke/sft.yaml`."""
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def find_config(name: str, config_dir: Path | None = None) -> Path:
    """Find the file that `config=NAME` means: the one at this path, else in the user's folder, else a recipe.

    Args:
        name: as typed; `.yaml` may be left out.
        config_dir: the user's own folder.

    Raises:
        ConfigError: there is none; the near names are listed.
    """
    if problem := name_problem(name):
        raise ConfigError(f"config={name}: {problem}")
    for folder in (Path(), *([config_dir] if config_dir else []), recipe_folder()):
        for spelled in (name, f"{name}.yaml"):
            if (path := folder / spelled).is_file():
                return path
    if not name:
        raise ConfigError("config= names no file: give it as config=FILE, or a recipe as config=smoke/sft")
    what = "it is a folder" if Path(name).is_dir() else "there is no such file, and no recipe of this name"
    raise ConfigError(f"config={name}: {what}{_way_out(name, config_dir)}")


def _way_out(name: str, config_dir: Path | None) -> str:
    """The names that are near, such as those that share their last part, or else the folders of the recipes."""
    bare = name.removesuffix(".yaml").strip("/")
    known = [one for folder in (config_dir, recipe_folder()) if folder is not None for one in recipe_names(folder)]
    folders = dict.fromkeys(one.partition("/")[0] for one in recipe_names(recipe_folder()))
    beside = Path(name) if Path(name).is_dir() else Path(name).parent
    known += [(beside / path.name).as_posix() for path in beside.glob("*.yaml")] if beside.is_dir() else []
    parts = [one for one in known if one.startswith(f"{bare}/") or one.endswith(f"/{Path(bare).name}")]
    near = dict.fromkeys([*parts, *difflib.get_close_matches(bare, known, n=_SHOWN, cutoff=0.6)])
    nearest = difflib.get_close_matches(bare, near, n=_SHOWN, cutoff=0.0)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else f"; recipes are in {', '.join(folders)}"
