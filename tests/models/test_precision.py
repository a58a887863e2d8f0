"""What torch computes is the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Each process that is forked makes its own first calls, from two threads at once.
_SCRIPT = """
import hashlib, os
import torch
import athanor.models.precision

torch.set_num_threads(1)
numbers = torch.linspace(0.5, 500, 1 << 18)
seen = set()
for _ in range(400):
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        torch.set_num_threads(2)
        found = torch.stack([numbers.cos(), numbers.sin(), numbers.sqrt(), numbers.log()])
        os.write(write, hashlib.sha256(found.numpy().tobytes()).digest())
        os._exit(0)
    seen.add(os.read(read, 32))
    os.close(read)
    os.close(write)
    os.waitpid(child, 0)
print(len(seen))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork processes")
def test_the_first_functions_of_a_process_are_those_of_all_others() -> None:
    environment = {**os.environ, "GOMP_SPINCOUNT": "0"}  # threads that wait do not hold the others up
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, env=environment, timeout=300, check=True
    )
    assert done.stdout.strip() == "1"
