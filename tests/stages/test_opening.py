"""How a run says that it is out of memory outside of its steps: with a way on, if there is one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import MemoryShortage
from alignkit.stages.opening import open_run
from alignkit.training.session import TO_GO_ON
from alignkit.training.sft import SftTrainer


@pytest.mark.parametrize("begun", [False, True])
def test_only_a_run_that_began_can_be_resumed(job: Callable[..., Any], begun: bool) -> None:
    def run_out() -> None:
        with open_run(job(), "sft", Path("it"), None, SftTrainer) as run:
            if begun:
                run.begin()
            raise MemoryError

    with pytest.raises(MemoryShortage, match=r"^sft, outside of a step: out of memory: lower train\.per_d") as caught:
        run_out()
    assert str(caught.value).endswith(TO_GO_ON if begun else "lora=default; nothing was written")
    assert Path("it/run.json").exists() == begun
