"""One signal asks, two kill, and the handlers that were there come back."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from alignkit.training.signals import name_of, stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
