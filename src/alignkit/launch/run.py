"""A job handed to its stage, or each job of a sweep, in a run directory that Hydra makes."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra import main as hydra_main
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from alignkit.choices import Resume
from alignkit.errors import AlignkitError, ConfigError, Interrupted, RunError, StopSignal
from alignkit.jobs import StageJob
from alignkit.launch.compose import ALONE, StepLayers, as_given, composed, prepare, read_overlays
from alignkit.launch.typed import Also, nothing, typed
from alignkit.launch.words import hydra_words, swept
from alignkit.named_files import row_problems
from alignkit.origins import origins
from alignkit.runs.directory import finished_problems, was_restarted
from alignkit.runs.given import Given, mask_words
from alignkit.runs.lock import LOCK, hold
from alignkit.runs.manifest import read_manifest
from alignkit.runs.sweep import SweptRun, announce, conclude_sweep, mask_sweep
from alignkit.training.signals import name_of, raised_stop

_FOLDER_ERRORS = (
    *(errno.EEXIST, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG),
    *(errno.EROFS, errno.ENOSPC, errno.EDQUOT),
)


def launch(
    stage: str,
    words: list[str],
    *,
    config_dir: Path | None = None,
    multirun: bool = False,
    show: str | None = None,
    info: str | None = None,
    layers: StepLayers = ALONE,
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
    also: Also = partial(_finished, words=words, config_dir=config_dir) if runs_one and layers is ALONE else nothing
    overrides, overlays = prepare(
        stage, words, config_dir, sweep=multirun, further=runs_one, named=True, also=also, layers=layers
    )
    if runs_one:  # before a folder is made and torch is imported
        typed(stage, composed(stage, overrides, config_dir), named=True, overlays=overlays, also=also)
    searched = ["--config-dir", str(config_dir)] if config_dir else []
    asked = [*["--multirun"] * multirun, *searched]
    command = mask_words(layers.command or ["alignkit", stage, *words, *asked])
    launched = _Launched(stage, overlays, config_dir, command, swept(overrides) if multirun else None)
    shown = [*(["--cfg", show] if show else []), *(["--info", info] if info else [])]
    with launched.held:
        try:
            _run_hydra(stage, launched, [*overrides, *asked, *shown])
        except (KeyboardInterrupt, StopSignal) as stop:
            if launched.swept is None or not launched.runs:
                raise
            launched.stop(stop.number if isinstance(stop, StopSignal) else signal.SIGINT)
        return launched.record()


@dataclass
class _Launched:
    """What Hydra calls with each job of a launch, and what came of them.

    Attributes:
        stage: a key of `JOBS`.
        overlays: the content of each `config=` file, by its name.
        config_dir: a folder of the user's own group options.
        command: the command line, for the record.
        swept: the keys that a sweep gives several values; None where one job runs.
        folder: of the sweep.
        runs: those that ended, one way or the other.
        failures: the run directory and the error of each that failed.
        held: the lock on the folder of the sweep: each run has one of its own, but two sweeps would share the runs out.
    """

    stage: str
    overlays: Mapping[str, Mapping[str, Any]]
    config_dir: Path | None
    command: Sequence[str]
    swept: set[str] | None
    folder: Path = Path()
    runs: list[SweptRun] = field(default_factory=list)
    failures: list[tuple[Path, Exception]] = field(default_factory=list)
    held: ExitStack = field(default_factory=ExitStack)

    def __call__(self, cfg: DictConfig) -> None:
        """Run one job."""
        hydra = HydraConfig.get()
        self.folder = _short(Path(hydra.sweep.dir).absolute())
        keys = {*(self.swept or ()), *(hydra.sweeper.get("params") or {})}
        own = [word for word in hydra.overrides.task if word.lstrip("+").partition("=")[0] in keys]
        run = SweptRun(mask_words(own), _short(Path(hydra.runtime.output_dir)))
        problem = "not begun"
        if self.swept is not None and not self.runs and "BasicLauncher" in str(hydra.launcher):
            self._hold(run.folder)
        try:
            if not self._is_stopped():
                self._run(cfg, run)
                problem = ""
        except Exception as error:
            # Hydra prints a line of its own about an error it sees; only a launcher in another process must see it.
            if "BasicLauncher" not in str(hydra.launcher):
                raise
            self.failures.append((run.folder, error))
            problem = next(iter(str(error).splitlines()), type(error).__name__)
        finally:
            self.runs.append(dataclasses.replace(run, problem=problem))
            _remove_if_empty(run.folder)

    def _is_stopped(self) -> bool:
        """Tell whether a signal has ended the sweep: one that ended a run meant all of them."""
        if self.runs and not self.failures and (number := raised_stop()):
            self.stop(number)
        return bool(self.failures) and isinstance(self.failures[-1][1], Interrupted)

    def stop(self, number: int) -> None:
        """End the sweep for a signal that ended no run."""
        stopped = Interrupted(number, f"{name_of(number)}: stopped between two runs of the sweep")
        self.failures.append((self.folder, stopped))

    def _hold(self, first: Path) -> None:
        if os.environ.get("RANK", "0") == "0":
            try:
                self.held.enter_context(hold(self.folder, self.folder / LOCK))
            except RunError:
                _remove_if_empty(first)
                raise

    def _run(self, cfg: DictConfig, run: SweptRun) -> None:
        if self.swept is not None:
            mask_sweep(self.folder)
            announce(run)
        job = typed(self.stage, cfg, named=self.swept is not None, overlays=self.overlays)
        import_module(f"alignkit.stages.{self.stage}.run").run(job, run.folder, given=self._given(cfg))

    def _given(self, cfg: DictConfig) -> Given:
        settings, hydra = as_given(cfg), HydraConfig.get()
        found = origins(
            settings,
            choices=hydra.runtime.choices,
            overlays=self.overlays,
            words=hydra.overrides.task,
            config_dir=self.config_dir,
        )
        return Given(settings, found, self.command)

    def record(self) -> dict[str, Any] | None:
        """Return what is recorded of the run or the sweep; None where nothing ran here.

        Raises:
            Exception: what ended the run, or those of a sweep in one.
        """
        from alignkit.pages.report import keep_report

        swept = conclude_sweep(self.folder, self.stage, self.runs) if self.swept is not None and self.runs else None
        if swept and os.environ.get("RANK", "0") == "0":
            keep_report(self.folder)
        if self.failures:
            error = _together(self.failures)
            raise _of_a_sweep(error) if self.swept is not None and isinstance(error, Interrupted) else error
        if swept or not self.runs:
            return swept
        folder = self.runs[0].folder
        return {"folder": str(folder), **(read_manifest(folder) or {})}


def _finished(job: StageJob, *, words: list[str], config_dir: Path | None) -> list[str]:
    """Say that a run is finished, where its folder is the usual one: with all other mistakes, not before or after them.

    Those of its rows are told, too, which nobody would look at where the run is refused.
    """
    overlays, _ = read_overlays(words, config_dir)
    elsewhere = any(word.startswith("hydra") for word in words) or any("hydra" in one for one in overlays.values())
    if elsewhere or job.overwrite or str(job.resume).lower() != Resume.false or was_restarted():
        return []
    finished = finished_problems(Path("runs", job.stage, job.name), job.stage)
    return [*finished, *row_problems(job)] if finished else []


def _of_a_sweep(error: Interrupted) -> Interrupted:
    """Say how to go on with all runs of a sweep, of which some may not have begun."""
    number, message = error.args
    return Interrupted(
        number, f"{message}; for all runs of the sweep go on with resume=auto, which also starts the others"
    )


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


def _run_hydra(stage: str, task: Callable[[DictConfig], None], argv: list[str]) -> None:
    saved, saved_full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]  # `--info` prints through a handler that Hydra leaves there
    sys.argv = [f"alignkit {stage}", *argv]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # mistakes are raised to us instead of printed with a stack trace
    try:
        with hydra_words():
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
