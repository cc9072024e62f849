"""From words on the command line to a typed job handed to its stage; the only module that knows Hydra."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra import main as hydra_main
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignkit import mistakes
from alignkit.config import Resume
from alignkit.data.files.shipped import shipped_file
from alignkit.errors import AlignkitError, ConfigError, Interrupted, RunError
from alignkit.home import expand_home
from alignkit.jobs import JOBS, StageJob, out_of_bounds, path_problems, settings, with_home
from alignkit.named_files import named_problems
from alignkit.origins import origins
from alignkit.quoting import with_text_quoted
from alignkit.recipes import find_config
from alignkit.runs.directory import finished_problems, was_restarted
from alignkit.runs.given import Given, mask_words
from alignkit.upstream import idle_layers


@dataclass(frozen=True)
class StepLayers:
    """What a step of a pipeline brings beside its words.

    Attributes:
        contents: settings laid over those of the `config=` files, by what messages and the record call them.
        folders: what `${run:STEP}` gives: the run directory of each earlier step.
        command: the command line of the pipeline, for the record.
    """

    contents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()


Also = Callable[[Any], list[str]]  # what else is wrong with a job, one line each


def _nothing(job: Any) -> list[str]:
    return []


_ALONE = StepLayers()
_RAISED = "ValueError raised while resolving interpolation: "  # before the words of a resolver of ours
_RUN_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
_FOLDER_ERRORS = (errno.EEXIST, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


def launch(
    stage: str,
    words: list[str],
    *,
    config_dir: Path | None = None,
    multirun: bool = False,
    show: str | None = None,
    info: str | None = None,
    layers: StepLayers = _ALONE,
) -> dict[str, Any] | None:
    """Compose the job of a stage and run it, or print what was asked about it.

    Args:
        stage: a key of `JOBS`; `alignkit.stages.<stage>` has the `run(job, run_dir, given=...)` it is handed to.
        words: `key=value` overrides and `config=FILE` overlays, in the order they win.
        config_dir: a folder of the user's own group options.
        multirun: run every combination of a sweep.
        show: print the composed `job`, `hydra` or `all` instead of running (`--cfg`).
        info: print what Hydra knows about `defaults`, `config`, … instead of running (`--info`).
        layers: of the step of a pipeline.

    Returns:
        The record of the run with its `folder`, or what `sweep.json` holds of a sweep; None where nothing ran here.

    Raises:
        AlignkitError: the user's mistake, in words.
    """
    if multirun and (show or info):
        raise ConfigError("--multirun runs jobs, --cfg and --info only show one: give one of them")
    if info is not None and show is not None:
        raise ConfigError("--cfg and --info each show something else: give one of them")
    runs_one = not (multirun or show or info)
    also: Also = partial(_finished, words=words, config_dir=config_dir) if runs_one and layers is _ALONE else _nothing
    overrides, overlays = _prepare(
        stage, words, config_dir, sweep=multirun, further=runs_one, named=True, also=also, layers=layers
    )
    if runs_one:  # before a folder is made and torch is imported
        typed(stage, _composed(stage, overrides, config_dir), named=True, overlays=overlays, also=also)
    flags = [*(["--multirun"] if multirun else []), *(["--cfg", show] if show else [])]
    flags += [*(["--info", info] if info else []), *(["--config-dir", str(config_dir)] if config_dir else [])]

    from alignkit.pages.report import keep_report
    from alignkit.runs.manifest import read_manifest
    from alignkit.runs.sweep import SweptRun, announce, conclude_sweep, mask_sweep

    typed_words = ["--multirun"] * multirun + (["--config-dir", str(config_dir)] if config_dir else [])
    command = mask_words(layers.command or ["alignkit", stage, *words, *typed_words])

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
        own = [word for word in hydra.overrides.task if word.lstrip("+").partition("=")[0] in keys]
        run = SweptRun(mask_words(own), run_dir)
        problem = ""
        try:
            if failures and isinstance(failures[-1][1], Interrupted):
                problem = "not begun"
                return  # the signal meant the sweep, not one run of it
            if multirun:
                mask_sweep(folders[-1])
                announce(run)
            job = typed(stage, cfg, named=multirun, overlays=overlays)
            import_module(f"alignkit.stages.{stage}.run").run(job, run_dir, given=as_given(cfg))
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
    if record and os.environ.get("RANK", "0") == "0":
        keep_report(folders[0])
    if failures:
        raise _together(failures)
    return record or {"folder": str(runs[0].folder), **(read_manifest(runs[0].folder) or {})} if runs else None


def _finished(job: StageJob, *, words: list[str], config_dir: Path | None) -> list[str]:
    """Say that a run is finished, where its folder is the usual one: with all other mistakes, not after them."""
    overlays, _ = _read_overlays(words, config_dir)
    elsewhere = any(word.startswith("hydra") for word in words) or any("hydra" in one for one in overlays.values())
    if elsewhere or job.overwrite or str(job.resume).lower() != Resume.false or was_restarted():
        return []
    return finished_problems(Path("runs", job.stage, job.name), job.stage)


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


def compose_job(
    stage: str, words: list[str], *, config_dir: Path | None = None, also: Also = _nothing, **given: Any
) -> Any:
    """The typed job, without a run directory (for `inspect`, `generate` and notebooks).

    Args:
        stage: a key of `JOBS`.
        words: as in `launch`.
        config_dir: as in `launch`.
        also: finds what else is wrong with the job, to be told with the other mistakes.
        **given: top-level sections laid under the words, such as `model={"name": run}`.
    """
    overrides, overlays = _prepare(stage, words, config_dir, also=also, given=given)
    return typed(stage, _composed(stage, overrides, config_dir), overlays=overlays, also=also)


def command_job(
    stage: str, words: list[str], *, config_dir: Path | None = None, also: Also = _nothing, **given: Any
) -> tuple[Any, dict[str, Any]]:
    """`compose_job` for a command that runs at once, and the settings as they were given, for its record.

    Files and folders that are named must be there. In the record interpolations are unresolved: it may be written out.
    """
    overrides, overlays = _prepare(stage, words, config_dir, named=True, also=also, given=given)
    cfg = _composed(stage, overrides, config_dir)
    return typed(stage, cfg, named=True, overlays=overlays, also=also), _as_given(cfg)


def step_job(
    stage: str, words: list[str], layers: StepLayers, *, config_dir: Path | None = None, **given: Any
) -> tuple[Any, dict[str, Any]]:
    """`command_job` for the step of a pipeline: runs that it names need not be there yet."""
    overrides, overlays = _prepare(stage, words, config_dir, given=given, layers=layers)
    cfg = _composed(stage, overrides, config_dir)
    return typed(stage, cfg, overlays=overlays), _as_given(cfg)


def _composed(stage: str, overrides: list[str], config_dir: Path | None) -> DictConfig:
    own = [f"hydra.searchpath=[file://{config_dir.resolve()}]"] if config_dir is not None else []
    with _hydra_words(), initialize_config_module("alignkit.conf", version_base="1.3"):
        return compose(stage, [*overrides, *own])


def _as_given(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg, resolve=False)  # ${oc.env:TOKEN} must not be written out


def job_of_record(stage: str, given: Mapping[str, Any], folders: Mapping[str, str] | None = None) -> Any:
    """The job that the record of a run holds: interpolations are resolved now, later settings have their defaults.

    Args:
        stage: a key of `JOBS`.
        given: its settings.
        folders: what `${run:STEP}` gives, of the step of a pipeline.

    Raises:
        ConfigError: as `typed`.
    """
    _register_resolvers(folders or {})
    with _hydra_words():
        cfg = OmegaConf.create(dict(given))
    return typed(stage, cfg, named=True)


def typed(
    stage: str,
    cfg: DictConfig,
    *,
    named: bool = False,
    overlays: Mapping[str, Any] | None = None,
    also: Also = _nothing,
) -> Any:
    """The job as plain dataclasses, `~` in its paths expanded.

    Args:
        stage: a key of `JOBS`.
        cfg: composed.
        named: look also whether the files and folders that it names are there.
        overlays: the files it was composed of, to name the one that a setting is in.
        also: finds what else is wrong.

    Raises:
        ConfigError: a setting is missing, of the wrong type or out of its bounds; all of them at once.
    """
    with _hydra_words():
        if unresolved := dict(_unresolved(cfg)):
            raise ConfigError(*(mistakes.file_of(key, overlays or {}) + line for key, line in unresolved.items()))
        node = OmegaConf.merge(OmegaConf.structured(JOBS[stage]), OmegaConf.to_container(cfg, resolve=True))
        assert isinstance(node, DictConfig)
        missing = [key for key, *_ in settings(JOBS[stage]()) if _is_missing(node, key)]
        for key in missing:  # the others are to be looked at, too
            OmegaConf.update(node, key, "")
        job = with_home(OmegaConf.to_object(node))
    problems = [f"{key} is missing: give it as {key}=…{_group_hint(key)}" for key in missing]
    problems += [*_name_problems(job), *path_problems(job), *out_of_bounds(job)]
    problems += idle_layers(getattr(job, "lora", {}))
    if named:
        problems += named_problems(job)
    if problems := [*problems, *also(job)]:
        raise ConfigError(*dict.fromkeys(problems))
    return job


def _unresolved(node: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """Each setting whose interpolation leads nowhere, with a line on how it is given."""
    keys = range(len(node)) if isinstance(node, ListConfig) else node.keys()
    for key in keys:
        dotted = f"{above}[{key}]" if isinstance(node, ListConfig) else f"{above}.{key}".lstrip(".")
        if OmegaConf.is_interpolation(node, key):
            written = node._get_node(key)._value()
            try:
                node[key]
            except (OmegaConfBaseException, ValueError, KeyError) as error:
                yield dotted, f"{dotted}={written}: {_why_unresolved(error)}"
        elif not OmegaConf.is_missing(node, key) and isinstance(node[key], (DictConfig, ListConfig)):
            yield from _unresolved(node[key], dotted)


def _why_unresolved(error: BaseException) -> str:
    line = str(error).splitlines()[0]
    if name := re.search(r"Environment variable '(.+?)' not found", line):
        give = f"export {name[1]}=…, or give a default: ${{oc.env:{name[1]},DEFAULT}}"
        return f"the environment variable {name[1]} is not set: {give}"
    if name := re.search(r"Interpolation key '(.+?)' not found", line):
        return f"there is no setting '{name[1]}'; a variable of the environment is ${{oc.env:{name[1]}}}"
    if name := re.search(r"Unsupported interpolation type (\S+)", line):
        return f"'{name[1]}' is unknown; a variable of the environment is ${{oc.env:NAME}}"
    return "it leads back to itself" if "Recursive" in line else line.removeprefix(_RAISED)


def _name_problems(job: Any) -> list[str]:
    name = getattr(job, "name", None)
    if name is None or (Path(name).parts and not Path(name).is_absolute() and ".." not in Path(name).parts):
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
    further: bool = True,
    named: bool = False,
    also: Also = _nothing,
    given: dict[str, Any] | None = None,
    layers: StepLayers = _ALONE,
) -> tuple[list[str], dict[str, Any]]:
    """Check everything that can be checked, and register schema and overlays.

    Where words are wrong the others are composed without them (`further`), so that all mistakes are told at once.

    Returns:
        Hydra's overrides, and the content of each `config=` file and of each layer above these.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir: '{config_dir}' is no folder")
    files = [word for word in words if word.startswith("config=")]
    _register_resolvers(layers.folders)
    overlays, problems = _read_overlays(words, config_dir)
    overlays |= layers.contents
    problems += mistakes.in_files(stage, overlays, config_dir)
    overrides = [word for word in words if not word.startswith("config=")]
    found = {
        word: mistakes.in_override(stage, word, config_dir, _is_sweep, sweep=sweep, before=before)
        for word, before in zip(overrides, ["", *overrides], strict=False)
    }
    problems += [line for lines in found.values() for line in lines]
    problems = problems or mistakes.hidden_templates(overlays, overrides)
    if not problems:
        return [*_registered(stage, overlays, given), *map(_readable, overrides)], overlays
    if not further or (config_dir and any(line.startswith(str(config_dir)) for line in problems)):
        raise ConfigError(*problems)
    sound = {path: mistakes.without_mistakes(stage, content, config_dir) for path, content in overlays.items()}
    unread = any("a configuration file is given as" in line for line in problems)
    cut = sound != overlays or len(overlays) < len(files) or unread
    about = tuple(re.split(r"[=.\[\s]", word.lstrip("+~"))[0] or word for word, lines in found.items() if lines)
    rest = [*_registered(stage, sound, given), *(_readable(word) for word, lines in found.items() if not lines)]
    try:
        typed(stage, _composed(stage, rest, config_dir), named=named, overlays=overlays, also=also)
    except ConfigError as error:
        # What was left out for its mistake is not missing.
        more = [line for line in error.problems if not (" is missing: " in line and (cut or line.startswith(about)))]
        raise ConfigError(*dict.fromkeys([*problems, *more])) from None
    raise ConfigError(*problems)


def _registered(stage: str, overlays: dict[str, Any], given: dict[str, Any] | None) -> list[str]:
    """Register a stage and what is laid over it with Hydra; the overrides that choose it."""
    store = ConfigStore.instance()
    store.store(name=f"{stage}_schema", node=_schema(stage))
    if not issubclass(JOBS[stage], StageJob):  # a stage has a file with its own choices among upstream's arguments
        store.store(name=stage, node={"defaults": [f"{stage}_schema", *_groups(stage), "_self_"]})
    chosen = []
    for number, content in enumerate([*([given] if given else []), *overlays.values()]):
        store.store(group=f"overlay{number}", name="file", node=_as_overlay(content), package="_global_")
        chosen.append(f"+overlay{number}=file")
    return chosen


def _readable(word: str) -> str:
    """Quote what Hydra has no rule for and can only be text; place runs below the home folder that `~` stands for."""
    key, mark, value = word.partition("=")
    if key in _RUN_FOLDERS:
        value = re.sub(r"^~(?=/|$)", lambda _: str(Path.home()), value)
    return f"{key}{mark}{with_text_quoted(value)}"


def _is_sweep(value: str) -> bool:
    """Tell whether Hydra reads a value as several.

    Raises:
        ValueError: it cannot read it at all.
    """
    try:
        return OverridesParser.create().parse_override(f"key={value}").is_sweep_override()
    except HydraException as error:
        raise ValueError(value) from error


def _register_resolvers(folders: Mapping[str, str]) -> None:
    OmegaConf.register_new_resolver("shipped", lambda key: str(shipped_file(key)), replace=True)
    OmegaConf.register_new_resolver("run", lambda step: _folder_of(step, folders), replace=True)


def _folder_of(step: str, folders: Mapping[str, str]) -> str:
    if step not in folders:
        raise ValueError(
            f"there is no earlier step {step}" if folders else "only a pipeline has steps: alignkit run runs one"
        )
    return folders[step]


def _schema(stage: str) -> DictConfig:
    schema: DictConfig = OmegaConf.structured(JOBS[stage])
    for key, item, _ in settings(JOBS[stage]()):
        if "dict" in str(item.type):
            OmegaConf.set_struct(OmegaConf.select(schema, key), False)
    return schema


def _groups(stage: str) -> list[dict[str, None]]:
    """The groups a job has, with no option chosen: what is not chosen is as the job's class says."""
    return [{group: None} for group in mistakes.groups_of(stage)]


def _read_overlays(words: list[str], config_dir: Path | None) -> tuple[dict[str, Any], list[str]]:
    """The contents of the `config=` files among the words, and what is wrong with these."""
    files = [expand_home(word.removeprefix("config=")) for word in words if word.startswith("config=")]
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
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]  # `--info` prints through a handler that Hydra leaves there
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
        root.setLevel(level)
        root.handlers[:] = handlers
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
        key = getattr(cause, "full_key", None)
        where = f"{cause.override}: " if isinstance(cause, OverrideParseException) else f"{key}: " if key else ""
        raise ConfigError(where + _why_unresolved(cause)) from error


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
