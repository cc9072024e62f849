"""From words on the command line to a typed job handed to its stage; the only module that knows Hydra."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra import main as hydra_main
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignkit import mistakes
from alignkit.data.files.shipped import shipped_file
from alignkit.errors import AlignkitError, ConfigError, Interrupted, RunError
from alignkit.jobs import JOBS, StageJob, out_of_bounds, path_problems, settings
from alignkit.origins import origins
from alignkit.recipes import find_config
from alignkit.runs.given import Given, mask_words

_FOLDER_ERRORS = (errno.EEXIST, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


def launch(
    stage: str,
    words: list[str],
    *,
    config_dir: Path | None = None,
    multirun: bool = False,
    show: str | None = None,
    info: str | None = None,
) -> dict[str, Any] | None:
    """Compose the job of a stage and run it, or print what was asked about it.

    Args:
        stage: a key of `JOBS`; `alignkit.stages.<stage>` has the `run(job, run_dir, given=...)` it is handed to.
        words: `key=value` overrides and `config=FILE` overlays, in the order they win.
        config_dir: a folder of the user's own group options.
        multirun: run every combination of a sweep.
        show: print the composed `job`, `hydra` or `all` instead of running (`--cfg`).
        info: print what Hydra knows about `defaults`, `config`, … instead of running (`--info`).

    Returns:
        The record of the run with its `folder`, or what `sweep.json` holds of a sweep; None where nothing ran here.

    Raises:
        AlignkitError: the user's mistake, in words.
    """
    if multirun and (show or info):
        raise ConfigError("--multirun runs jobs, --cfg and --info only show one: give one of them")
    overrides, overlays = _prepare(stage, words, config_dir, sweep=multirun)
    flags = [*(["--multirun"] if multirun else []), *(["--cfg", show] if show else [])]
    flags += [*(["--info", info] if info else []), *(["--config-dir", str(config_dir)] if config_dir else [])]

    from alignkit.runs.manifest import read_manifest
    from alignkit.runs.sweep import SweptRun, announce, conclude_sweep

    typed_words = ["--multirun"] * multirun + (["--config-dir", str(config_dir)] if config_dir else [])
    command = mask_words(["alignkit", stage, *words, *typed_words])

    def as_given(cfg: DictConfig) -> Given:
        composed, hydra = _as_given(cfg), HydraConfig.get()
        found = origins(
            composed,
            choices=hydra.runtime.choices,
            overlays=overlays,
            words=hydra.overrides.task,
            config_dir=config_dir,
        )
        return Given(composed, found, command)

    swept = _swept(overrides) if multirun else set()
    folders: list[Path] = []  # of the sweep, once for each run
    runs: list[SweptRun] = []
    failures: list[tuple[Path, Exception]] = []

    def task(cfg: DictConfig) -> None:
        hydra = HydraConfig.get()
        run_dir = _short(Path(hydra.runtime.output_dir))
        folders.append(_short(Path(hydra.sweep.dir).absolute()))
        keys = {*swept, *(hydra.sweeper.get("params") or {})}
        run = SweptRun([word for word in hydra.overrides.task if word.lstrip("+").partition("=")[0] in keys], run_dir)
        problem = ""
        try:
            if failures and isinstance(failures[-1][1], Interrupted):
                problem = "not begun"
                return  # the signal meant the sweep, not one run of it
            if multirun:
                announce(run)
            import_module(f"alignkit.stages.{stage}.run").run(typed(stage, cfg), run_dir, given=as_given(cfg))
        except Exception as error:
            # Hydra prints a line of its own about an error it sees; only a launcher in another process must see it.
            if "BasicLauncher" not in str(hydra.launcher):
                raise
            failures.append((run_dir, error))
            problem = next(iter(str(error).splitlines()), type(error).__name__)
        finally:
            runs.append(dataclasses.replace(run, problem=problem))
            _remove_if_empty(run_dir)

    _run_hydra(stage, task, [*overrides, *flags])
    record = conclude_sweep(folders[0], stage, runs) if multirun and runs else None
    if failures:
        raise _together(failures)
    return record or {"folder": str(runs[0].folder), **(read_manifest(runs[0].folder) or {})} if runs else None


def _swept(overrides: list[str]) -> set[str]:
    """The keys that have several values among these words."""
    with _hydra_words():
        words = OverridesParser.create().parse_overrides(overrides)
    return {word.key_or_group for word in words if word.is_sweep_override()}


def _together(failures: list[tuple[Path, Exception]]) -> Exception:
    """One error for all runs of a sweep that failed; what ended it, or is a bug of ours, stands for the others."""
    errors = [error for _, error in failures]
    alone = [error for error in errors if isinstance(error, Interrupted) or not isinstance(error, AlignkitError)]
    if alone or len(errors) == 1:
        return [*alone, *errors][0]
    lines = [
        line if str(folder) in line else f"{folder}: {line}"
        for folder, error in failures
        for line in getattr(error, "problems", ())
    ]
    together = AlignkitError(*lines)
    together.exit_status = max(error.exit_status for error in errors if isinstance(error, AlignkitError))
    return together


def compose_job(stage: str, words: list[str], *, config_dir: Path | None = None, **given: Any) -> Any:
    """The typed job, without a run directory (for `inspect`, `generate` and notebooks).

    Args:
        stage: a key of `JOBS`.
        words: as in `launch`.
        config_dir: as in `launch`.
        **given: top-level sections laid under the words, such as `model={"name": run}`.
    """
    return compose_with_record(stage, words, config_dir=config_dir, **given)[0]


def compose_with_record(
    stage: str, words: list[str], *, config_dir: Path | None = None, **given: Any
) -> tuple[Any, dict[str, Any]]:
    """`compose_job`, and the settings as they were given, interpolations unresolved: what may be written out."""
    overrides, _ = _prepare(stage, words, config_dir, given=given)
    if config_dir is not None:
        overrides.append(f"hydra.searchpath=[file://{config_dir.resolve()}]")
    with _hydra_words(), initialize_config_module("alignkit.conf", version_base="1.3"):
        cfg = compose(stage, overrides)
    return typed(stage, cfg), _as_given(cfg)


def _as_given(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg, resolve=False)  # ${oc.env:TOKEN} must not be written out


def typed(stage: str, cfg: DictConfig) -> Any:
    """The job as plain dataclasses.

    Raises:
        ConfigError: a setting is missing, of the wrong type or out of its bounds; all of them at once.
    """
    with _hydra_words():
        node = OmegaConf.merge(OmegaConf.structured(JOBS[stage]), OmegaConf.to_container(cfg, resolve=True))
        assert isinstance(node, DictConfig)
        missing = [key for key, *_ in settings(JOBS[stage]()) if _is_missing(node, key)]
        if missing:
            raise ConfigError(*(f"{key} is missing: give it as {key}=…{_group_hint(key)}" for key in missing))
        job = OmegaConf.to_object(node)
    if problems := [*_name_problems(job), *path_problems(job), *out_of_bounds(job)]:
        raise ConfigError(*problems)
    return job


def _name_problems(job: Any) -> list[str]:
    name = getattr(job, "name", None)
    if name is None or (name and not name.startswith("/") and ".." not in Path(name).parts):
        return []
    return [
        f"name={name}: a run's name is its folder below runs/ and cannot lead elsewhere; for another folder give "
        "hydra.run.dir=FOLDER"
    ]


def _is_missing(node: DictConfig, key: str) -> bool:
    section, _, leaf = key.rpartition(".")
    return OmegaConf.is_missing(OmegaConf.select(node, section) if section else node, leaf)


def _group_hint(key: str) -> str:
    group = key.split(".")[0]
    if group not in mistakes.GROUPS:
        return ""
    return f", or choose {group}= one of {', '.join(mistakes.group_options(group))}"


def _prepare(
    stage: str,
    words: list[str],
    config_dir: Path | None,
    *,
    sweep: bool = False,
    given: dict[str, Any] | None = None,
) -> tuple[list[str], dict[str, Any]]:
    """Check everything that can be checked, and register schema and overlays.

    Returns:
        Hydra's overrides, and the content of each `config=` file.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir: '{config_dir}' is no folder")
    files = [word.removeprefix("config=") for word in words if word.startswith("config=")]
    overrides = [word for word in words if not word.startswith("config=")]
    overlays, problems = _read_overlays(files, config_dir)
    problems += mistakes.in_files(stage, overlays, config_dir)
    problems += mistakes.in_overrides(stage, overrides, config_dir, sweep=sweep)
    problems = problems or mistakes.hidden_templates(overlays, overrides)
    if problems:
        raise ConfigError(*problems)
    store = ConfigStore.instance()
    store.store(name=f"{stage}_schema", node=_schema(stage))
    if not issubclass(JOBS[stage], StageJob):  # a stage has a file with its own choices among upstream's arguments
        store.store(name=stage, node={"defaults": [f"{stage}_schema", *_groups(stage), "_self_"]})
    chosen = []
    for number, content in enumerate([*([given] if given else []), *overlays.values()]):
        store.store(group=f"overlay{number}", name="file", node=_as_overlay(content), package="_global_")
        chosen.append(f"+overlay{number}=file")
    OmegaConf.register_new_resolver("shipped", lambda key: str(shipped_file(key)), replace=True)
    return [*chosen, *overrides], overlays


def _schema(stage: str) -> DictConfig:
    schema: DictConfig = OmegaConf.structured(JOBS[stage])
    for key, item, _ in settings(JOBS[stage]()):
        if "dict" in str(item.type):
            OmegaConf.set_struct(OmegaConf.select(schema, key), False)
    return schema


def _groups(stage: str) -> list[dict[str, None]]:
    """The groups a job has, with no option chosen: what is not chosen is as the job's class says."""
    return [{item.name: None} for item in dataclasses.fields(JOBS[stage]) if item.name in mistakes.GROUPS]


def _read_overlays(files: list[str], config_dir: Path | None) -> tuple[dict[str, Any], list[str]]:
    overlays: dict[str, Any] = {}
    problems: list[str] = []
    for file in files:
        try:
            path = find_config(file, config_dir)
            content = mistakes.read_yaml(path)
        except ConfigError as error:
            problems += error.problems
            continue
        if not content:
            problems.append(f"config={file}: the file is empty")
        elif not isinstance(content, dict):
            problems.append(f"config={file}: it holds a list where settings belong; write key: value lines")
        else:
            overlays[str(path)] = content
    return overlays, problems


def _as_overlay(content: dict[str, Any]) -> dict[str, Any]:
    """`model: tiny_gpt2` in a file chooses a group's option, as `model=tiny_gpt2` on the command line does."""
    chosen = {key: value for key, value in content.items() if key in mistakes.GROUPS and isinstance(value, str)}
    rest = {key: value for key, value in content.items() if key not in chosen}
    defaults = [*rest.pop("defaults", []), *({f"override /{group}": name} for group, name in chosen.items())]
    return {"defaults": [*defaults, "_self_"], **rest}


def _run_hydra(stage: str, task: Callable[[DictConfig], None], argv: list[str]) -> None:
    saved, saved_full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [f"alignkit {stage}", *argv]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # mistakes are raised to us instead of printed with a stack trace
    try:
        with _hydra_words():
            hydra_main(config_path="pkg://alignkit.conf", config_name=stage, version_base="1.3")(task)()
    except OSError as error:
        if error.errno not in _FOLDER_ERRORS:
            raise
        raise RunError(f"the run directory cannot be made: {error.strerror}: '{error.filename}'") from error
    finally:
        sys.argv = saved
        if saved_full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = saved_full_error


@contextlib.contextmanager
def _hydra_words() -> Iterator[None]:
    """What Hydra and OmegaConf raise for a user's mistake, as one line of ours."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        cause: BaseException = error
        while isinstance(cause.__cause__, (HydraException, OmegaConfBaseException)):
            cause = cause.__cause__
        where = f"{cause.override}: " if isinstance(cause, OverrideParseException) else ""
        raise ConfigError(where + str(cause).splitlines()[0]) from error


def _short(path: Path) -> Path:
    """Relative to where the user stands, if it is below: that is how they will type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _remove_if_empty(run_dir: Path) -> None:
    # Hydra makes the folder before the job can be checked; a refused run leaves nothing behind.
    for folder in (run_dir, run_dir.parent, run_dir.parent.parent):
        try:
            folder.rmdir()
        except OSError:
            return
