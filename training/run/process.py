"""The process-wide settings that a run changes, and their restoration."""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def left_as_found() -> Iterator[None]:
    """Restore the number of torch threads, the random states and the warning filters of the process at the end."""
    threads, python, numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with warnings.catch_warnings(), torch.random.fork_rng(devices):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            random.setstate(python)
            np.random.set_state(numpy)
