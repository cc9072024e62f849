"""Completions spread over servers: each group on one, and what a lost server was asked goes to the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from alignkit.config import SamplingConfig
from alignkit.engine.client import Refused, TimedOut, Unanswered
from alignkit.engine.request import Request
from alignkit.engine.vllm_server import VllmServer
from alignkit.errors import TrainingError
from alignkit.sampling.generate import Completion

logger = logging.getLogger(__name__)

_AT_ONCE = 64  # requests to a server: it batches what is there, and has a queue of its own
_MORE_ROUNDS = 2  # beside one for each server that may be lost


@dataclass
class Member:
    """A server and what became of it.

    Attributes:
        server: the server.
        lost: why it is not asked any more; empty while it is.
        num_completions: that it gave.
        num_tokens: in those.
        seconds: that it took.
    """

    server: VllmServer
    lost: str = ""
    num_completions: int = 0
    num_tokens: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        speed = self.num_tokens / max(self.seconds, 1e-9)
        counted = f"{self.num_completions:,} completions, {self.num_tokens:,} tokens, {speed:,.0f} tokens/s"
        return f"{self.server.url}: {counted}" + (f"; lost: it {self.lost}" if self.lost else "")


class Spread:
    """Servers that serve one model.

    Args:
        servers: at least one.
        eos_ids: the tokens that end a response.
        num_tokens: of the vocabulary.
        seed: of every draw.
        way_out: what to do where no server is left.

    Attributes:
        members: the servers, in the order they were named.
    """

    def __init__(
        self,
        servers: Sequence[VllmServer],
        *,
        eos_ids: Sequence[int],
        num_tokens: int,
        seed: int,
        way_out: str = "start one again",
    ) -> None:
        self.members = [Member(server) for server in servers]
        self.eos_ids, self.num_tokens, self.seed = list(eos_ids), num_tokens, seed
        self.way_out = way_out
        self._adapter: tuple[str, Path] | None = None
        self._losing = Lock()

    @property
    def living(self) -> list[Member]:
        """The servers that are asked."""
        return [member for member in self.members if not member.lost]

    def close(self) -> None:
        """Take the adapter away, and leave the servers."""
        for member in self.members:
            if self._adapter is not None and not member.lost:
                member.server.unload(self._adapter[0])
            member.server.close()

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter where it is not loaded yet, and take the one before away; a lost server may be back.

        Raises:
            TrainingError: no server has it.
        """
        before = self._adapter
        self._adapter = (name, folder)
        for member in self.members:
            if member.lost or member.server.model != name:
                self._load(member, name, folder)
            if before is not None and before[0] != name and not member.lost:
                member.server.unload(before[0])
        if not self.living:
            raise self._none_left()

    def _load(self, member: Member, name: str, folder: Path) -> None:
        try:
            member.server.load(name, folder)
        except (Refused, Unanswered) as error:
            self._lose(member, str(error))
            return
        if member.lost:
            logger.warning("%s is back", member.server.url)
            member.lost = ""

    def complete(
        self, requests: Sequence[Request], sampling: SamplingConfig, *, on_progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """Complete every prompt.

        Args:
            requests: what is wanted.
            sampling: settings without problems and without schedules.
            on_progress: called with the number of completions that are there, each time one comes.

        Raises:
            TrainingError: no server is left.
        """
        found: dict[int, Completion] = {}
        for _ in range(len(self.members) + _MORE_ROUNDS):
            wanted = [index for index in range(len(requests)) if index not in found]
            if not wanted:
                return [found[index] for index in range(len(requests))]
            if not self.living and self._adapter is not None:  # one that was started again has no adapter
                self.load(*self._adapter)
            if not self.living:
                break
            self._round(requests, wanted, sampling, found, on_progress)
        raise self._none_left()

    def _round(
        self,
        requests: Sequence[Request],
        wanted: Sequence[int],
        sampling: SamplingConfig,
        found: dict[int, Completion],
        on_progress: Callable[[int], None] | None,
    ) -> None:
        """Ask every living server for its share; what one that is lost meanwhile was asked stays wanted."""
        living = self.living
        groups = {group: number for number, group in enumerate(dict.fromkeys(requests[i].group for i in wanted))}
        members = {index: living[groups[requests[index].group] % len(living)] for index in wanted}
        started, ended = time.perf_counter(), {}
        pool = ThreadPoolExecutor(min(len(wanted), _AT_ONCE * len(living)))
        try:
            asked = {pool.submit(self._ask, members[i], requests[i], sampling): i for i in wanted}
            for future in as_completed(asked):
                index, completion = asked[future], future.result()
                if completion is None:
                    continue
                found[index], member = completion, members[index]
                ended[member.server.url] = time.perf_counter()
                member.num_completions += 1
                member.num_tokens += len(completion.token_logprobs)
                if on_progress is not None:
                    on_progress(len(found))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        for member in living:
            member.seconds += ended.get(member.server.url, started) - started

    def _ask(self, member: Member, request: Request, sampling: SamplingConfig) -> Completion | None:
        """A completion; None where its server is lost."""
        for last in (False, True):
            if member.lost:
                break
            try:
                return member.server.complete(
                    request, sampling, eos_ids=self.eos_ids, num_tokens=self.num_tokens, seed=self.seed
                )
            except (Unanswered, Refused) as error:
                if last or isinstance(error, TimedOut):
                    self._lose(member, str(error))
        return None

    def _lose(self, member: Member, reason: str) -> None:
        with self._losing:
            is_new, member.lost = not member.lost, member.lost or reason  # the first one is why
        if is_new and self.living:
            logger.warning("%s %s; the other servers are asked in its place", member.server.url, reason)

    def _none_left(self) -> TrainingError:
        reasons = "; ".join(f"{member.server.url} {member.lost}" for member in self.members)
        return TrainingError(f"no server of engine.servers is left: {reasons}; {self.way_out}")
