"""The machine: what it has, how fast it really is, and how to set up a process so that training on a CPU is not slowed
by its own libraries.

`prepare_process` must run before torch is imported. What it sets was measured (docs/lab.md): large blocks kept by the
heap, which lies on huge pages, make memory-bound operations 2 to 4 times faster, and threads that soon sleep at
barriers instead of spinning keep a machine that also does other work from becoming ten times slower.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from athanor.base.heap import prepare_heap, shrink_heap


def prepare_process() -> None:
    """Sets allocator and thread behaviour; later calls, and variables that the user has set, change nothing."""
    prepare_heap()
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it a GPU's products differ from run to run


def return_memory() -> None:
    """Gives back to the system what has been freed, which `prepare_process` and torch keep for speed."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    shrink_heap()


@dataclass(frozen=True)
class Machine:
    """What was found. memory, accelerator_memory: in bytes; `features` are the processor's instruction sets that
    matter here.
    """

    system: str
    processor: str
    cores: int
    memory: int
    features: tuple[str, ...]
    accelerator: str | None
    python: str
    torch: str
    accelerator_memory: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Rates:
    """Measured: large matrix products in FLOP/s, memory reads in bytes/s."""

    fp32: float
    bf16: float
    read: float

    @property
    def best(self) -> float:
        return max(self.fp32, self.bf16)

    @property
    def precision(self) -> str:
        """The faster type; bf16 must win by a tenth, since fp32 costs no care."""
        return "bf16" if self.bf16 > 1.1 * self.fp32 else "fp32"

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def usable_cores() -> int:
    """Cores this process may run on, bounded by a container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def _memory() -> int:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return min(total, int(limit)) if limit != "max" else total
    except (OSError, ValueError):
        return total


def available_memory() -> int:
    """Bytes that can be had without swapping, bounded by a container's limit."""
    import psutil

    available = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text())
            lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
            cached = next((int(value) for name, value in lines if name == "inactive_file"), 0)
            available = min(available, int(limit) - used + cached)
    except (OSError, ValueError):
        pass
    return max(0, available)


def _processor() -> tuple[str, tuple[str, ...]]:
    interesting = (
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "amx_bf16",
        "amx_int8",
        "asimd",
        "bf16",
        "i8mm",
        "sve",
    )
    name, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            label, _, value = line.partition(":")
            if label.strip() == "model name":
                name = value.strip()
            elif label.strip() in ("flags", "Features"):
                flags = set(value.split())
    except OSError:
        pass
    return name, tuple(feature for feature in interesting if feature in flags)


def describe() -> Machine:
    """Looks the machine over; takes no measurement. Imports torch."""
    import torch

    name, features = _processor()
    found = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return Machine(
        f"{platform.system()} {platform.machine()}", name, usable_cores(), _memory(), features,
        found.name if found else None, platform.python_version(), torch.__version__, found.total_memory if found else 0,
    )  # fmt: skip


def peak_memory() -> int:
    """Bytes: the largest resident size this process has had."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def exactness_key(device: Any = None) -> dict[str, Any]:
    """What must be equal for two runs to agree bit for bit: our own code, library, code path, threads. device: a
    torch.device; the CPU by default.
    """
    import torch

    on_gpu = device is not None and device.type == "cuda"
    return {
        "source": source_fingerprint(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor()[0],
        "threads": torch.get_num_threads(),
    } | ({"accelerator": torch.cuda.get_device_name(device)} if on_gpu else {})


@cache
def source_fingerprint() -> str:
    """Identifies the code of this package, whatever its version says."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(path for path in package.rglob("*.*") if path.suffix in (".py", ".c", ".h")):
        digest.update(f"{path.relative_to(package)}:{path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _best_time(operation: Any, seconds: float) -> float:
    """The shortest of several: what the machine can do, not what its neighbours left of it."""
    operation()
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times) < 3:
        start = time.perf_counter()
        operation()
        times.append(time.perf_counter() - start)
    return min(times)


def _beyond_caches() -> int:
    """Bytes that no cache of this machine holds a quarter of, as far as memory allows."""
    sizes = [_bytes_of(path.read_text()) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(256 << 20, min(4 * max(sizes, default=0), available_memory() // 8))


def _bytes_of(text: str) -> int:
    """As Linux writes the size of a cache: 32K, 260M."""
    found = re.fullmatch(r"(\d+)([KMG]?)\s*", text)
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]] if found else 0


def measure(seconds: float = 3.0, device: Any = "cpu") -> Rates:
    """Measures for about `seconds`, as this process is set up (threads, allocator). device: of torch."""
    import torch

    device = torch.device(device)
    size = 2048 if device.type == "cpu" else 8192

    def timed(operation: Callable[[], Any]) -> float:
        def whole() -> None:
            operation()
            finish(device)

        return _best_time(whole, seconds / 3)

    def matrix_rate(dtype: torch.dtype) -> float:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))  # zeros would be cheaper
        return 2 * size**3 / timed(lambda: torch.mm(left, right))

    block = torch.ones(_beyond_caches() // 4, dtype=torch.float32, device=device)
    return Rates(matrix_rate(torch.float32), matrix_rate(torch.bfloat16), block.nbytes / timed(block.sum))


def finish(device: Any) -> None:
    """Waits until a torch device has done all that it was given; a CPU has."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
