import os
import select
import signal

import numpy as np
import pytest
import torch
from conftest import disc, photographed

from refine.engine import Refiner
from refine.errors import RefineError

TRUTH = disc((180, 240), 60)
IMAGE = photographed(TRUTH)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def answer_of_a_fork(work, seconds: float = 60) -> str:
    """What ``work`` returns, as a text, in a forked child; an error's name and text."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = str(work())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(there, text.encode())
        os._exit(0)
    os.close(there)
    ready, _, _ = select.select([here], [], [], seconds)
    text = os.read(here, 4096).decode() if ready else "no answer"
    os.close(here)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return text


def test_a_fork_of_a_process_that_has_refined_refines(two_threads):
    refiner = Refiner(device="cpu", dtype="float32")
    there = refiner.refine(IMAGE, TRUTH).mask
    assert answer_of_a_fork(lambda: np.count_nonzero(refiner.refine(IMAGE, TRUTH).mask != there)) == "0"
    assert torch.get_num_threads() == 2
    assert answer_of_a_fork(torch.get_num_threads) == "1"


def test_a_fork_in_which_threads_would_wait_for_ever_is_told_to_spawn(two_threads):
    refiner = Refiner(device="cpu", dtype="float32")

    def work() -> None:
        torch.set_num_threads(2)
        refiner.refine(IMAGE, TRUTH)

    told = answer_of_a_fork(work)
    assert told.startswith(f"{RefineError.__name__}: this process was forked")
    assert "spawn" in told
