"""Reward functions run in processes of their own: what hangs, dies or eats memory does not take the run along."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.config import ModelConfig
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import RewardError
from alignkit.rewards.load import check_rewards, load_rewards
from alignkit.rewards.sample import Sample
from alignkit.rewards.source import parse_rewards
from alignkit.rewards.weighted import Rewards
from alignkit.rewards.worker import Setup
from alignkit.rewards.workers import Workers

FUNCTIONS = """
import asyncio, os, random, resource, signal, sys, threading, time

def length(prompts, completions): return [len(c) for c in completions]
def hangs(prompts, completions):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while "b" in completions: pass
    return [1] * len(completions)
def exits(prompts, completions):
    if "b" in completions: os._exit(3)
    return [1] * len(completions)
def killed(prompts, completions):
    if "b" in completions: os.kill(os.getpid(), signal.SIGKILL)
    return [1] * len(completions)
def eats(prompts, completions):
    resource.setrlimit(resource.RLIMIT_AS, (2**31, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return [len(bytearray(2**40)) if c == "b" else 1 for c in completions]
def leaves(prompts, completions): sys.exit(3)
def dies_later(prompts, completions):
    threading.Timer(0.1, os._exit, [1]).start()
    return [1] * len(completions)
def heavy(prompts, completions): return [int("torch" in sys.modules or "alignkit.config" in sys.modules)]
def naps(prompts, completions):
    time.sleep(0.5)
    return [os.getpid()] * len(completions)
calls = 0
def counts(prompts, completions):
    global calls
    calls += 1
    return [calls] * len(completions)
def noise(prompts, completions): return [random.random() for _ in completions]
running = 0
async def later(prompts, completions):
    global running
    running += 1
    await asyncio.sleep(0.2)
    return [running] * len(completions)
async def late(prompts, completions):
    await asyncio.sleep(30 if "b" in completions else 0)
    return [1] * len(completions)
async def blocks(prompts, completions):
    time.sleep(30 if "b" in completions else 0)
    return [1] * len(completions)
"""


def samples(*completions: str) -> list[Sample]:
    asked = Conversation((Message("user", "Say a."),))
    return [Sample(f"rows.jsonl:{row}", asked, text) for row, text in enumerate(completions, 1)]


def load(name: Any, **keys: Any) -> Rewards:
    function = f"mine.py:{name}" if isinstance(name, str) else name
    sources = parse_rewards([{"function": function, "timeout": 20, **keys}])
    assert check_rewards(sources) == []
    return load_rewards(sources, ModelConfig(), device=torch.device("cpu"))


def total(name: Any, *completions: str, **keys: Any) -> list[float | None]:
    rewards = load(name, **keys)
    scores = rewards.score(samples(*completions)).total
    rewards.close()
    return scores


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hangs", "took longer than 1 seconds; raise reward[0].timeout; the sample is rows.jsonl:2"),
        ("exits", "ended its process with exit status 3; the sample is rows.jsonl:2"),
        ("killed", "was ended by SIGKILL, as the system does where memory runs out; the sample is rows.jsonl:2"),
        ("eats", "raised MemoryError: ; the sample is rows.jsonl:2"),
        ("late", "took longer than 1 seconds; raise reward[0].timeout; the sample is rows.jsonl:2"),
        ("blocks", "took longer than 1 seconds; raise reward[0].timeout; the sample is rows.jsonl:2"),
    ],
)
def test_a_function_that_hangs_or_dies_costs_one_completion_or_stops_the_run(
    name: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert total(name, "a", "b", "c", on_error="skip", timeout=1) == [1.0, None, 1.0]
    assert said in caplog.text
    with pytest.raises(RewardError) as caught:
        total(name, "a", "b", "c", timeout=1)
    assert f"reward[0]: mine.py:{name} {said}" in str(caught.value)


def test_a_function_may_not_end_the_run() -> None:
    with pytest.raises(RewardError, match=r"mine\.py:leaves raised SystemExit: 3"):
        total("leaves", "a")


def test_a_worker_that_dies_between_two_calls_is_replaced() -> None:
    rewards = load("dies_later")
    assert rewards.score(samples("a")).total == [1.0]
    time.sleep(1)
    assert rewards.score(samples("a")).total == [1.0]


def test_what_stops_the_run_does_not_wait_for_what_hangs_beside_it() -> None:
    began = time.monotonic()
    with pytest.raises(RewardError, match="took longer than 1 seconds"):
        total("hangs", *"bbbbbbbb", batch_size=1, timeout=1)
    assert time.monotonic() - began < 6


def test_scores_do_not_depend_on_the_number_of_workers() -> None:
    completions = ["a" * (row % 7) for row in range(40)]
    for name in ("length", "noise"):
        assert total(name, *completions, batch_size=3) == total(name, *completions, batch_size=3, num_proc=3)


def test_draws_are_those_of_the_completions_and_leave_the_draws_of_the_run_alone() -> None:
    random.seed(1)
    before = random.getstate()
    assert total("noise", "a") == total("noise", "a") != total("noise", "b")
    assert random.getstate() == before


def test_several_workers_share_the_calls_and_their_time() -> None:
    rewards = load("naps", batch_size=1, num_proc=4)
    began = time.monotonic()
    workers = rewards.score(samples(*"abcdefgh")).total
    assert time.monotonic() - began < 3  # of 4 seconds of sleep
    assert workers[:4] == workers[4:]
    assert len({*workers, os.getpid()}) == 5


def test_state_lives_as_long_as_its_worker() -> None:
    assert total("counts", *"abcd", batch_size=1) == [1.0, 2.0, 3.0, 4.0]
    assert total("counts", *"abcd", batch_size=1, num_proc=2) == [1.0, 1.0, 2.0, 2.0]


def test_calls_of_an_asynchronous_function_are_awaited_together() -> None:
    rewards = load("later", batch_size=1)
    assert rewards.score(samples(*"abcd")).total == [4.0] * 4
    assert rewards.score(samples(*"ab")).total == [6.0] * 2  # the same worker, and the same loop


def test_a_worker_imports_nothing_heavy() -> None:
    assert total("heavy", "a") == [0.0]


def test_a_function_of_python_may_close_over_what_can_be_sent() -> None:
    limit = 2
    assert total(lambda prompts, completions: [float(len(c) > limit) for c in completions], "ab", "abc") == [0.0, 1.0]
    lock = threading.Lock()
    (line,) = check_rewards(parse_rewards([{"function": lambda prompts, completions: lock.locked()}]))
    assert "test_a_function_of_python_may_close_over" in line
    assert "<lambda> cannot be sent to a worker process: TypeError: cannot pickle" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere", "mine.py:length cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("import sys; sys.exit(2)", "the function cannot be imported in a worker process: SystemExit: 2"),
        ("import os; os._exit(2)", "importing the function ended its process with exit status 2"),
        ("length = 3", "mine.py:length is no function: its type is int"),
    ],
)
def test_a_function_that_cannot_be_imported_is_refused_before_a_model_is_loaded(text: str, said: str) -> None:
    Path("mine.py").write_text(text)
    (line,) = check_rewards(parse_rewards([{"function": "mine.py:length"}]))
    assert line == f"reward[0]: {said}"


def test_a_file_that_was_mended_is_read_anew() -> None:
    Path("mine.py").write_text("def length(prompts): ...")
    sources = parse_rewards([{"function": "mine.py:length"}])
    assert len(check_rewards(sources)) == 1
    Path("mine.py").write_text(FUNCTIONS)
    assert check_rewards(sources) == []


SCRIPT = """
import sys, time
import torch
from alignkit.config import ModelConfig
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.rewards.load import check_rewards, load_rewards
from alignkit.rewards.sample import Sample
from alignkit.rewards.source import parse_rewards

def seen(prompts, completions):
    import os, time
    open("pid", "w").write(str(os.getpid()))
    time.sleep(float(completions[0]))
    return [1.0]

print("started")
rewards = load_rewards(parse_rewards([{"function": seen}]), ModelConfig(), device=torch.device("cpu"))
sample = Sample("rows:1", Conversation((Message("user", "Say a."),)), sys.argv[1])
print(rewards.score([sample]).total)
"""


@pytest.mark.slow
def test_a_script_without_a_guard_runs_once_and_leaves_no_worker(folder: Path) -> None:
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py", "0"], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("started\n[1.0]\n", "")
    assert not _is_running(int((folder / "pid").read_text()))


def test_workers_may_be_collected_by_a_thread_of_their_own_pool(folder: Path) -> None:
    workers = Workers(Setup("reward[0]", "mine.py:length"), 1)
    found: list[object] = []

    def close(future: Any) -> None:  # called by the pool's thread of messages
        try:
            found.append(workers.close())
        except RuntimeError as error:
            found.append(error)

    pool = workers._pools[0]
    pid = pool.schedule(os.getpid)
    pid.add_done_callback(close)
    number = pid.result(timeout=60)
    _wait(lambda: found)
    assert found == [None]
    _wait(lambda: not _is_running(number))


def test_a_run_that_is_killed_leaves_no_worker(folder: Path) -> None:
    (folder / "script.py").write_text(SCRIPT)
    running = subprocess.Popen([sys.executable, "script.py", "60"], stdout=subprocess.DEVNULL)
    _wait(lambda: (folder / "pid").is_file() and (folder / "pid").read_text())
    pid = int((folder / "pid").read_text())
    assert _is_running(pid)
    running.kill()
    running.wait()
    _wait(lambda: not _is_running(pid))


def _wait(is_so: Any) -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
