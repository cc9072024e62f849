"""Out of memory: told from every other error, with what to lower."""

import pytest
import torch

from alignkit.errors import ConfigError, MemoryShortage
from alignkit.models.memory import explain_out_of_memory


def too_large() -> None:
    torch.empty(1 << 60)


def no_memory() -> None:
    raise MemoryError


def on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def in_a_data_worker() -> None:
    killed = RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")
    raise RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly") from killed


@pytest.mark.parametrize("allocate", [too_large, no_memory, on_a_gpu, in_a_data_worker])
def test_it_says_where_and_what_to_lower(allocate: object) -> None:
    assert callable(allocate)
    with (
        pytest.raises(MemoryShortage) as caught,
        explain_out_of_memory("lower x", doing=lambda: "step 3", then=lambda: "; y"),
    ):
        allocate()
    assert str(caught.value) == "step 3: out of memory: lower x; y"
    assert caught.value.exit_status == 1


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ConfigError("out of memory is a word")])
def test_other_errors_are_left_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explain_out_of_memory("lower x"):
        raise error
    assert caught.value is error
