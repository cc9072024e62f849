"""The servers of a PPO job: asked, put together, and told of on the first screen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkit.choices import Correction
from alignkit.engine.contact import Needed, contact
from alignkit.engine.handover import AdapterFolder
from alignkit.engine.kept import KeptCompletions
from alignkit.engine.probe import Probe
from alignkit.engine.spread import Spread
from alignkit.engine.vllm_server import Served, VllmServer
from alignkit.jobs import PpoJob
from alignkit.models.skeleton import skeleton
from alignkit.models.source import ModelSource
from alignkit.ppo.engine import MAX_WEIGHT, Engine
from alignkit.stages.ppo.data import Prepared

FOLDER = "engine"  # in the run directory
_NUM_TEXTS = 3  # prompts whose tokens are compared


def open_servers(job: PpoJob, prepared: Prepared) -> list[tuple[VllmServer, Served]]:
    """Ask each server whether it serves what the job needs, before a model is loaded.

    Raises:
        ConfigError: one line for each that does not.
    """
    servers = [VllmServer(url, timeout=job.engine.timeout) for url in job.engine.servers]
    prompts = prepared.data.train + prepared.data.held_out
    needed = Needed(
        model=ModelSource.of(job.model).base.config.name,
        tokenizer=prepared.tokenizer,
        num_tokens=_num_tokens(job),
        texts=[prompt.text for prompt in prompts[:_NUM_TEXTS]],
        longest=max(len(prompt.ids) for prompt in prompts) + job.sampling.max_new_tokens,
        adapters=True,
    )
    return list(zip(servers, contact(servers, needed), strict=True))


def build_engine(job: PpoJob, servers: Sequence[VllmServer], run_dir: Path, *, eos_ids: Sequence[int]) -> Engine:
    """Put an engine together."""
    way_out = "start one again, and go on with resume=true"
    spread = Spread(servers, eos_ids=eos_ids, num_tokens=_num_tokens(job), seed=job.seed, way_out=way_out)
    folder, rank = run_dir / FOLDER, os.environ.get("RANK", "0")
    kept = KeptCompletions(folder / f"completions-{rank}.jsonl")  # each process keeps its own
    return Engine(spread, AdapterFolder(folder, run_dir.name), kept, job.engine)


def _num_tokens(job: PpoJob) -> int:
    embeddings: Any = skeleton(job.model).get_input_embeddings()
    return len(embeddings.weight)


def engine_facts(job: PpoJob, served: Sequence[Served], probes: Sequence[Probe] | None) -> dict[str, str]:
    """Say on the first screen which servers there are, a line each, and what they change.

    Args:
        job: the settings.
        served: what each server says of itself.
        probes: what was seen of each; None before.
    """
    weights = f", weighed by min(π/π_engine, {job.engine.max_weight or MAX_WEIGHT:g})"
    how = weights if job.engine.correction is Correction.truncated else ""
    lines = {
        f"server {number}": f"vLLM {one.version}, {one.root}; {seen}"
        for number, (one, seen) in enumerate(zip(served, probes or job.engine.servers, strict=True), start=1)
    }
    exact = "completions are drawn by servers, whose rounding is their own: seed and settings do not fix their bits"
    return {"engine": f"vllm: an adapter of a new name after each update{how}; {exact}", **lines}
