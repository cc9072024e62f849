"""A process ends as it was told to, whatever its threads still hold."""

import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import distributed

from alignkit.training.processes import _await_gloo

# The main thread keeps the interpreter's lock from the last exchange to the end, and the mesh keeps the group.
ENDS = """
import sys
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from alignkit.training.processes import parted_at_exit
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
with parted_at_exit():
    sys.setswitchinterval(1000)
    for _ in range(100):
        distributed.all_reduce(torch.ones(4), async_op=True)
    if sys.argv[1] == "2":
        sys.exit(2)
"""


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone, and an interpreter that no thread can interrupt."""
    interval = sys.getswitchinterval()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(interval)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def test_no_thread_of_gloo_holds_a_tensor_once_it_is_waited_for(group: None) -> None:
    for _ in range(10):  # a thread may have been quick
        left = []
        for _ in range(100):
            tensor = torch.ones(4)
            left.append(weakref.ref(tensor))
            distributed.all_reduce(tensor, async_op=True)
        del tensor
        _await_gloo()
        assert [ref() for ref in left] == [None] * 100


@pytest.mark.slow
@pytest.mark.parametrize("status", [0, 2])
def test_a_process_ends_with_its_status_though_gloo_holds_its_tensors(status: int) -> None:
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", ENDS, str(status)], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr.count("terminate")) == (status, 0), ended.stderr
