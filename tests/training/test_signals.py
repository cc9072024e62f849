"""One signal asks, two kill, and the handlers that were there come back."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from alignkit.errors import StopSignal
from alignkit.training.signals import name_of, raised_stop, stop_requests, stops_raised


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_a_request_and_a_quick_repeat_is_the_same_one(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with stop_requests(announce=True) as request:
        assert request.number == 0
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # as a launcher passes it on
        assert request.number == number
    assert signal.getsignal(number) == before
    said = capfd.readouterr().err
    assert said == f"\n{name_of(number)}: saving a checkpoint after this step; once more kills at once\n"


def test_the_second_signal_kills() -> None:
    program = """
import os, signal, time
from alignkit.training.signals import stop_requests
with stop_requests(announce=False) as request:
    os.kill(os.getpid(), signal.SIGTERM)
    request.at -= 2
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=50, check=False).returncode == -signal.SIGTERM


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    seen = []

    def train() -> None:
        with stop_requests(announce=True) as request:
            seen.append((request.number, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [(0, before)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_where_no_step_is_taken_it_is_an_exception(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(StopSignal) as caught, stops_raised():
        os.kill(os.getpid(), number)
    assert caught.value.number == number
    assert not isinstance(caught.value, Exception)  # whoever catches those must not go on
    assert signal.getsignal(number) == before


def test_training_asks_in_place_of_raising() -> None:
    with stops_raised(), stop_requests(announce=False) as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.number == signal.SIGTERM


class Dying:
    """Receives a signal where Python ignores exceptions."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


def wait_for_it(number: int) -> None:
    Dying(number)
    for _ in range(100):
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_that_python_ignored_is_raised_again(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    hook, handler = sys.unraisablehook, signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else StopSignal), stops_raised():
        wait_for_it(number)
    assert (sys.unraisablehook, signal.getsignal(number)) == (hook, handler)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_that_was_swallowed_stops_training_after_its_first_step(number: signal.Signals) -> None:
    with stops_raised():
        with suppress(BaseException):
            os.kill(os.getpid(), number)
        assert raised_stop() == number
        with stop_requests(announce=False) as request:
            assert request.number == number
    assert raised_stop() == 0
    with stop_requests(announce=False) as request:
        assert request.number == 0


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stops_raised(), stop_requests(announce=False) as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.number == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone_does_not_spoil_the_request() -> None:
    program = """
import os, signal
from alignkit.training.signals import stop_requests
out, into = os.pipe()
os.close(out)
os.dup2(into, 2)
with stop_requests(announce=True) as request:
    os.kill(os.getpid(), signal.SIGHUP)
    print(request.number)
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"1\n"


def test_a_forked_worker_is_ended_as_ever() -> None:
    with stops_raised(), stop_requests(announce=True):
        if not (worker := os.fork()):
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -signal.SIGTERM
