"""Where a model comes from: a folder, an adapter on a base, or the hub; and what is wrong with it before it is read."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from difflib import get_close_matches
from filecmp import cmp
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import model_info, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from alignkit.choices import Init
from alignkit.config import ModelConfig
from alignkit.errors import DamagedFile, did_you_mean_path
from alignkit.home import expand_home
from alignkit.json_files import get, read_object
from alignkit.models.kinds import kind_of_config, kind_of_file, kind_of_names

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Files that hold one JSON object each, where they are there.
_OBJECTS = [ADAPTER_CONFIG, "config.json", "model.safetensors.index.json", "generation_config.json", "tokenizer.json"]
_OBJECTS += ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "run.json", "score.json"]
# How the names of a tokenizer's files begin.
TOKENIZER_FILES = ("tokenizer", "special_tokens", "added_tokens", "chat_template", "vocab", "merges", "spiece")
_HUB_TIMEOUT = 10.0  # seconds
_NEWEST = ("last", "latest", "newest")
_CONVERT = "convert it at https://huggingface.co/spaces/safetensors/convert, or take a revision that has safetensors"


@dataclass(frozen=True)
class ModelSource:
    """What `model.name` means. Each fact is looked up once, when it is first asked for: files may be damaged.

    Attributes:
        config: the section.
        folder: that the name means; None where it can only be a hub id, and for random weights.
    """

    config: ModelConfig
    folder: Path | None

    @classmethod
    def of(cls, model: ModelConfig) -> ModelSource:
        """Look for the folder that a section names."""
        return cls(model, local_folder(model.name) if model.init is Init.pretrained else None)

    @property
    def location(self) -> Path | str:
        """What `from_pretrained` is given."""
        return self.folder or self.config.name

    @cached_property
    def is_adapter(self) -> bool:
        """Whether a folder holds an adapter, and not full weights."""
        return self.folder is not None and (self.folder / ADAPTER_CONFIG).is_file()

    @cached_property
    def is_reward(self) -> bool:
        """Whether a folder holds a reward model, an adapter or full weights, and not a language model."""
        for file, key in ((ADAPTER_CONFIG, "task_type"), ("config.json", "architectures")):
            if self.folder is not None and (self.folder / file).is_file():
                found = read_object(self.folder / file).get(key)
                types = found if isinstance(found, list) else [found]
                return any(name == "SEQ_CLS" or name.endswith("ForSequenceClassification") for name in map(str, types))
        return False

    @cached_property
    def base(self) -> ModelSource:
        """The full weights: those an adapter sits on, or these.

        A folder's own `base/` comes first, so that a run directory can be moved.
        """
        if not self.is_adapter:
            return self
        assert self.folder is not None
        if (self.folder / "base" / "config.json").is_file():
            return self._at(str(self.folder / "base"), None)
        path = self.folder / ADAPTER_CONFIG
        adapter = read_object(path)
        revision = get(adapter, "revision", str, path) if adapter.get("revision") is not None else None
        return self._at(get(adapter, "base_model_name_or_path", str, path), revision)

    def is_same(self, other: ModelSource) -> bool:
        """Whether both are the same full weights: one folder, two with the same bytes, or one hub revision."""
        folder, beside = self.folder, other.folder
        if folder is None or beside is None:
            mine, theirs = self.config, other.config
            return folder is beside and (mine.name, mine.revision) == (theirs.name, theirs.revision)
        if folder.resolve() == beside.resolve():
            return True
        names, others = (sorted(path.name for path in place.glob("model*.safetensors")) for place in (folder, beside))
        same = (cmp(folder / name, beside / name, shallow=False) for name in ["config.json", *names])
        return names == others and all(same)

    def sits_on(self, base: ModelSource, *, commit: str | None) -> bool:
        """Whether this adapter was trained on the very weights of `base`.

        Args:
            base: full weights.
            commit: what `base.config.revision` led to on the hub; None where that is not known, or `base` is a folder.
        """
        revisions = {base.config.revision, commit}
        return any(self.base.is_same(base._at(base.config.name, revision)) for revision in revisions)

    def _at(self, name: str, revision: str | None) -> ModelSource:
        return ModelSource.of(dataclasses.replace(self.config, name=name, revision=revision))


def local_folder(name: str) -> Path | None:
    """Return the folder that a name means, or None where it can only be a hub id."""
    path = expand_home(name)
    return Path(path) if os.path.isdir(path) else None  # noqa: PTH112  # Path.is_dir raises where a name is too long


def tokenizer_folder(model: ModelConfig) -> Path | None:
    """Return the folder whose tokenizer a model with random weights reads with; None where it reads bytes."""
    return local_folder(model.name) if model.init is Init.random else None


def config_folder(model: ModelConfig) -> Path | None:
    """Return the folder whose config.json a model with random weights is built from; None where model.config is all."""
    folder = tokenizer_folder(model)
    is_whole = folder is None or "model_type" in model.config or not (folder / "config.json").is_file()
    return None if is_whole else folder


def weight_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Read which weights a safetensors file holds, and their shapes, from its header alone."""
    with safe_open(file, framework="np") as weights:  # "pt" would import torch
        return {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118  # it has keys() and cannot be iterated


def near_models(name: str) -> str:
    """Suggest the runs and model folders that a name may stand for: `; did you mean 'runs/sft/s1'?`, or nothing."""
    typed = Path(expand_home(name))
    runs = sorted(str(path.parent) for depth in ("*/*", "*/*/*") for path in Path("runs").glob(f"{depth}/run.json"))
    beside = [item for item in typed.parent.glob("*") if item.is_dir()]
    if typed.name in _NEWEST and runs:
        return f"; did you mean '{max(runs, key=lambda run: Path(run, 'run.json').stat().st_mtime)}', the newest run?"
    ends = [run for run in runs if Path(run).parts[-len(typed.parts) :] == typed.parts]
    ends = ends or [run for run in runs if Path(run).name.lower() == typed.name.lower()]
    if ends:
        return f"; did you mean {' or '.join(map(repr, ends[:3]))}?"
    by_name = {Path(run).name: run for run in runs}
    close = get_close_matches(typed.name, by_name, n=1) if len(typed.parts) == 1 else get_close_matches(name, runs, n=1)
    near = did_you_mean_path(typed, beside)
    return near or (f"; did you mean {by_name.get(close[0], close[0])!r}?" if close else "")


def source_problems(source: ModelSource, *, wants_reward: bool | None = False) -> list[str]:
    """List what is wrong with `model.name` and `model.revision`, one line each; a hub id costs one request.

    Args:
        source: of the section.
        wants_reward: a folder must hold a reward model (true), or must not (false); null takes either.
    """
    model, folder = source.config, source.folder
    if folder is None:
        return _hub_problems(model)
    if problems := _damaged(folder):
        return problems
    try:
        problems = _adapter_problems(folder, source.base) if source.is_adapter else _full_model_problems(folder)
    except DamagedFile as error:
        return [f"model.name: {error}"]
    if not problems and wants_reward is not None and source.is_reward != wants_reward:
        what, wanted = (
            ("a language model", "a reward model") if wants_reward else ("a reward model", "a language model")
        )
        problems.append(f"model.name: {folder} is {what} where {wanted} belongs")
    if model.revision is not None:
        problems.append(f"model.revision: {model.name} is a folder, only a hub model has revisions; leave it out")
    return problems


def unmergeable(model: ModelConfig) -> list[str]:
    """Say that a model is no adapter, so that there is nothing to merge, in a line; an empty list of an adapter."""
    if ModelSource.of(model).is_adapter:
        return []
    return [f"model.name: {model.name} is no adapter: there is nothing to merge"]


def _damaged(folder: Path) -> list[str]:
    problems = []
    for path in (folder / name for name in _OBJECTS if (folder / name).is_file()):
        try:
            read_object(path)
        except DamagedFile as error:
            problems.append(f"model.name: {error}")
    return problems


def hub_options(source: ModelSource) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained` finds a model on the hub or in its cache: none for a folder."""
    if source.folder is not None:
        return {}
    model = source.config
    options: dict[str, Any] = {"revision": model.revision or "main"}
    try:
        model_info(model.name, revision=model.revision, timeout=_HUB_TIMEOUT)
    except (HTTPError, OSError):
        # transformers would try again for most of a minute, file by file, before it looks into the cache
        options["local_files_only"] = True
    return options


def _full_model_problems(folder: Path) -> list[str]:
    config = folder / "config.json"
    what = kind_of_names({path.name for path in folder.iterdir()})
    what = what or (kind_of_config(read_object(config)) if config.is_file() else "")
    if what:
        return [f"model.name: {folder} {what}"]
    if not config.is_file():
        record = read_object(folder / "run.json") if (folder / "run.json").is_file() else {}
        if record.get("status", "finished") != "finished":
            return [f"model.name: {folder} is an unfinished run ({record['status']}): go on with resume=true"]
        inside = [*folder.glob("*/config.json"), *folder.glob(f"*/{ADAPTER_CONFIG}")]
        hint = f"; did you mean '{min(inside).parent}'?" if inside else ""
        return [f"model.name: {folder} holds no model, config.json is missing{hint}"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(map(str, get(read_object(index), "weight_map", dict, index).values()))
        return _weight_problems(folder, [folder / name for name in sorted(shards)])
    return _weight_problems(folder, sorted(folder.glob("model*.safetensors")))


def _adapter_problems(folder: Path, base: ModelSource) -> list[str]:
    problems = _weight_problems(folder, sorted(folder.glob(ADAPTER_WEIGHTS)))
    name = base.config.name
    if base.folder is None and (Path(name).is_absolute() or len(Path(name).parts) > 2 or name.startswith(".")):
        return [
            *problems,
            f"model.name: the base of the adapter {folder} is missing: {name}; put it back, or name its new place "
            f"as base_model_name_or_path in {folder / ADAPTER_CONFIG}",
        ]
    found = source_problems(base, wants_reward=base.is_reward)  # saved beside a reward adapter, or a plain base
    return problems + [f"{problem} (the base of the adapter {folder})" for problem in found]


def _weight_problems(folder: Path, files: list[Path]) -> list[str]:
    if not files:
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        if pickles:
            return [f"model.name: {folder} has its weights in a pickle, {pickles[0]}, which can run code: {_CONVERT}"]
        return [f"model.name: {folder} has no weights, no *.safetensors file"]
    problems = []
    for file in files:
        try:
            with safe_open(file, framework="np"):  # compares the header with the size of the file, reads no weights
                pass
        except FileNotFoundError:
            problems.append(f"model.name: {file} is missing")
        except (SafetensorError, OSError) as error:
            problems.append(f"model.name: {file} is damaged, or no safetensors file: {error}")
    return problems


def _hub_problems(model: ModelConfig) -> list[str]:
    name, path, near = model.name, expand_home(model.name), near_models(model.name)
    if os.path.isfile(path):  # noqa: PTH113  # Path.is_file raises where a name is too long
        return [f"model.name: {name} is a {kind_of_file(Path(path).name)}"]
    try:
        siblings = model_info(name, revision=model.revision, timeout=_HUB_TIMEOUT).siblings or []
    except HFValidationError:  # no hub id could look like this
        return [f"model.name: there is no folder {name}{near}"]
    except GatedRepoError:
        return [f"model.name: {name} is gated: accept its terms at https://huggingface.co/{name}, then `hf auth login`"]
    except RevisionNotFoundError:
        return [f"model.revision: {name} has no revision '{model.revision}'"]
    except RepositoryNotFoundError:
        return [f"model.name: '{name}' is neither a folder here nor a model on the hub that you may read{near}"]
    except (HTTPError, OSError):
        if isinstance(try_to_load_from_cache(name, "config.json", revision=model.revision), str):
            return []
        return [f"model.name: there is no folder '{name}', and the hub cannot be reached to look there{near}"]
    files = {sibling.rfilename for sibling in siblings}
    if ADAPTER_CONFIG in files:
        return [f"model.name: {name} is an adapter: `hf download` it and name the folder"]
    if what := kind_of_names(files):
        return [f"model.name: {name} {what}"]
    if not any(file.endswith(".safetensors") for file in files):
        return [f"model.name: {name} has no safetensors weights: {_CONVERT}"]
    return []
