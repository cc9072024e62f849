"""A run made again from its record, and whether it comes out the same, bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import chdir
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from alignkit.choices import EvalGroups
from alignkit.errors import AlignkitError, RunError
from alignkit.jobs import JOBS, StageJob
from alignkit.json_files import get, read_object
from alignkit.launch import job_of_record
from alignkit.runs.difference import Differences, differences
from alignkit.runs.given import MASKED, Given, texts
from alignkit.runs.log import TERMINAL
from alignkit.runs.manifest import check_format, flat, read_manifest, run_time, step_folders
from alignkit.runs.result import CHECKSUMS
from alignkit.terminal import in_a_line, print_json_lines

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repeated:
    """A run and its repetition.

    Attributes:
        folder: of the new run.
        found: in what the two differ.
        files: of the result that differ, by their checksums.
    """

    folder: Path
    found: Differences
    files: list[str]

    @property
    def is_same(self) -> bool:
        """Whether every logged figure and every file of the result is the same, bit for bit."""
        return not self.files and self.found.first_step is None and not self.found.figures


def repeat(folder: Path, into: Path | None = None) -> Repeated:
    """Run again what a record says, in the folder that it was started in, into a new run directory.

    Args:
        folder: of a finished run.
        into: the new run directory; None takes that of the run with `-repeat` behind it.

    Raises:
        RunError: the run is not finished, or what it was made of is gone or another one, a line each.
        AlignkitError: as the stage.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise RunError(f"{folder} is no run of alignkit: its record is what is repeated")
    check_format(manifest, folder)
    folder, into = folder.resolve(), (into or folder.with_name(f"{folder.name}-repeat")).resolve()
    started_in = Path((manifest.get("starts") or [{}])[0].get("folder", "."))
    # Paths of the record are as they were typed there; a project that was copied is repeated in the copy.
    with chdir(started_in if folder.is_relative_to(started_in.absolute()) and started_in.is_dir() else Path.cwd()):
        job, files = _job(folder, manifest), _checksums(folder)
        for line in _surroundings(manifest, folder):
            logger.warning("%s", line)
        given = Given(
            manifest.get("job", {}), manifest.get("origins", {}), ["alignkit", "repeat", str(folder)], run_time(folder)
        )
        import_module(f"alignkit.stages.{manifest['stage']}.run").run(job, into, given=given)
    again = read_manifest(into) or {}
    return Repeated(into, differences(folder, manifest, into, again), list(_other_files(files, _checksums(into))))


def _job(folder: Path, manifest: Mapping[str, Any]) -> StageJob:
    """The job of a record, after all that would keep it from being repeated has been looked for."""
    stage = manifest.get("stage")
    if not issubclass(JOBS.get(str(stage), object), StageJob):
        raise RunError(
            f"{folder} was made by alignkit {stage}, which has nothing to train: a run of a stage is repeated"
        )
    if manifest["status"] != "finished":
        raise RunError(f"{folder} is {manifest['status']}: there is no result to compare with; go on with resume=true")
    if masked := [key for key, value in flat(manifest.get("job", {})) if MASKED in texts(value)]:
        raise RunError(f"{folder} does not hold the values of {', '.join(masked)}, which are secret: train it anew")
    try:
        job: StageJob = job_of_record(str(stage), manifest.get("job", {}), step_folders(folder))
        job.resume = job.overwrite = False
        if manifest.get("eval_groups"):
            job.data.eval_groups = EvalGroups(manifest["eval_groups"])
        from alignkit.stages.inputs import fingerprints, input_differences

        problems = list(input_differences(manifest.get("inputs", {}), fingerprints(job), folder))
    except AlignkitError as error:
        raise RunError(*error.problems, f"{folder} cannot be repeated without it") from error
    if problems:
        raise RunError(*problems, "put them back as they were: a repetition is of the same run")
    return job


def _surroundings(manifest: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Versions and machines that are not those of the run: the bits may differ by them."""
    from alignkit.runs.directory import versions
    from alignkit.runs.machine import describe_machine

    for name, now in versions().items():
        if (before := manifest.get("versions", {}).get(name)) not in (None, now):
            yield f"{folder} was made with {name} {before}; this is {now}"
    start, here = (manifest.get("starts") or [{}])[-1], describe_machine()
    for name in ("processor", "threads", "processes", "accelerators"):
        if name in start and start[name] != here[name]:
            yield f"{folder} was made with {name} {start[name]}; here it is {here[name]}"


def _checksums(folder: Path) -> dict[str, Any]:
    path = folder / CHECKSUMS
    return get(read_object(path), "files", dict, path)


def _other_files(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """The files of two results whose checksums differ."""
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            yield name


def report(repeated: Repeated, *, as_json: bool) -> None:
    """Print whether a repetition came out the same, and what differs.

    Args:
        repeated: the repetition.
        as_json: one JSON object instead.
    """
    if as_json:
        facts = {"folder": str(repeated.folder), "same": repeated.is_same, "files": repeated.files}
        print_json_lines([{**facts, **asdict(repeated.found)}])
        return
    same = "the same, bit for bit" if repeated.is_same else "not the same"
    lines = [*repeated.found.lines(), *(f"{name} differs" for name in repeated.files)]
    for line in [*lines, f"{repeated.folder} is {same}"]:
        TERMINAL.print(in_a_line(line), markup=False, highlight=False)
