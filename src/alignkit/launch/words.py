"""What is Hydra's own about words and settings: how it reads them, and what it says about a user's mistake."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignkit.data.files.shipped import shipped_file
from alignkit.errors import ConfigError
from alignkit.quoting import with_text_quoted

_RAISED = "ValueError raised while resolving interpolation: "  # before the words of a resolver of ours
_RUN_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")


@contextlib.contextmanager
def hydra_words() -> Iterator[None]:
    """What Hydra and OmegaConf raise for a user's mistake, as one line of ours."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        cause: BaseException = error
        while isinstance(cause.__cause__, (HydraException, OmegaConfBaseException)):
            cause = cause.__cause__
        key = getattr(cause, "full_key", None)
        where = f"{cause.override}: " if isinstance(cause, OverrideParseException) else f"{key}: " if key else ""
        raise ConfigError(where + why_unresolved(cause)) from error


def why_unresolved(error: BaseException) -> str:
    line = str(error).splitlines()[0]
    if name := re.search(r"Environment variable '(.+?)' not found", line):
        give = f"export {name[1]}=…, or give a default: ${{oc.env:{name[1]},DEFAULT}}"
        return f"the environment variable {name[1]} is not set: {give}"
    if name := re.search(r"Interpolation key '(.+?)' not found", line):
        return f"there is no setting '{name[1]}'; a variable of the environment is ${{oc.env:{name[1]}}}"
    if name := re.search(r"Unsupported interpolation type (\S+)", line):
        return f"'{name[1]}' is unknown; a variable of the environment is ${{oc.env:NAME}}"
    return "it leads back to itself" if "Recursive" in line else line.removeprefix(_RAISED)


def readable(word: str) -> str:
    """Quote what Hydra has no rule for and can only be text; place runs below the home folder that `~` stands for."""
    key, mark, value = word.partition("=")
    if key in _RUN_FOLDERS:
        value = re.sub(r"^~(?=/|$)", lambda _: str(Path.home()), value)
    return f"{key}{mark}{with_text_quoted(value)}"


def is_sweep(value: str) -> bool:
    """Tell whether Hydra reads a value as several.

    Raises:
        ValueError: it cannot read it at all.
    """
    try:
        return OverridesParser.create().parse_override(f"key={value}").is_sweep_override()
    except HydraException as error:
        raise ValueError(value) from error


def swept(overrides: list[str]) -> set[str]:
    """The keys that have several values among these words."""
    with hydra_words():
        words = OverridesParser.create().parse_overrides(overrides)
    return {word.key_or_group for word in words if word.is_sweep_override()}


def register_resolvers(folders: Mapping[str, str]) -> None:
    OmegaConf.register_new_resolver("shipped", lambda key: str(shipped_file(key)), replace=True)
    OmegaConf.register_new_resolver("run", lambda step: _folder_of(step, folders), replace=True)


def _folder_of(step: str, folders: Mapping[str, str]) -> str:
    if step not in folders:
        raise ValueError(
            f"there is no earlier step {step}" if folders else "only a pipeline has steps: alignkit run runs one"
        )
    return folders[step]
