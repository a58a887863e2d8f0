"""The heap keeps what is freed, on huge pages, without holes that fit nothing; what the user has set stays."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="the heap is prepared where glibc is"
)

BEFORE = "import os, resource\nfrom athanor.base.heap import *\nfrom athanor.base.machine import return_memory\n"
RESIDENT = "\ndef resident(): return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"


def said(program: str, **environment: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    command = [sys.executable, "-c", BEFORE + RESIDENT + program]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


STATE = "print(huge_pages(), os.environ.get('THP_MEM_ALLOC_ENABLE'))\n"


def test_torch_is_asked_where_addresses_are_counted() -> None:
    counted = "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
    assert said(counted + "prepare_heap()\n" + STATE) == ["torch", "1"]


@pytest.mark.parametrize(("given", "expected"), [("0", "None"), ("1", "torch")])
def test_the_users_choice_stays(given: str, expected: str) -> None:
    addresses = "import psutil\nprint(psutil.Process().memory_info().vms < 1 << 30)"
    assert said("prepare_heap()\n" + STATE + addresses, THP_MEM_ALLOC_ENABLE=given) == [expected, given, "True"]


def test_the_heap_lies_on_huge_pages_and_is_given_back() -> None:
    where, environment, *pages, held, left = said(
        "prepare_heap(); prepare_heap()\n"
        + STATE
        + """
def on_huge_pages():
    lines = open('/proc/self/smaps').read().split('\\n')
    return sum(int(line.split()[1]) for line in lines if line.startswith('AnonHugePages')) >> 10
import torch
for _ in range(2):
    blocks = [torch.ones(1 << 20) for _ in range(64)]
    print(on_huge_pages())
    del blocks
    held = resident()
    return_memory()
print(held >> 20, resident() >> 20)
"""
    )
    if where == "torch":
        pytest.skip("this system counts addresses, so torch is asked for huge pages")
    assert (where, environment) == ("heap", "None")
    assert int(held) - int(left) > 200
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("huge pages are switched off in this system")
    assert all(int(found) > 128 for found in pages), pages  # MB, of 256: the machine may have few left


def test_blocks_fit_where_others_were() -> None:
    """Gradients come and go among activations, as in training."""
    live, peak = said("""
prepare_heap()
import torch
block = lambda size: torch.zeros(size, dtype=torch.uint8)
before, gradients, live = resident(), [], 0
for step in range(30):
    activations = [[block(size) for size in 3 * [6_291_456] + 2 * [4_718_592, 2_359_296]] for layer in range(16)]
    live = max(live, sum(len(one) for layer in activations for one in layer) + sum(map(len, gradients)))
    gradients *= step % 4 > 0
    for layer in range(16):
        activations.pop()
        gradients += [block(size) for size in 3 * [3_538_944] + 2 * [1_327_104]]
        gradients = gradients[-80:]
print(live >> 20, resident() - before >> 20)
""")
    assert int(peak) < 1.15 * int(live)
