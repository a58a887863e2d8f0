"""Loading a model: seconds, and the most memory that its process ever took, each measurement in a fresh process.

The GGUF file is the packaged SmolLM2-135M-Instruct (Q4_1), unpacked to fp32; its peak counts the whole process, imports
included. The folder is a made-up model of about 300 MB in bf16; its peaks count what lies above the imports, as a share
of the weights that came out. The peer is transformers, which maps a bf16 folder without reading it: what its numbers
are shows later, while here they are looked at. `--no-peer` after the script's name leaves it out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _rows import row

from athanor.models.build import empty
from athanor.models.catalogue import MODELS
from athanor.models.config import standard_config
from athanor.models.folder import save_model

ISSUE = "B"
REPEATS, PEER_REPEATS = 5, 1
PEAK = """
def peak():
    import re
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
OURS = """
import json, sys, time, torch
from athanor.models.folder import load_model
from athanor.models.gguf.load import load_gguf
load_model(sys.argv[3])
imported, start = peak(), time.perf_counter()
dtype = torch.float32 if sys.argv[2] == "fp32" else None
model = load_gguf(sys.argv[1]) if sys.argv[1].endswith(".gguf") else load_model(sys.argv[1], dtype)
"""
THEIRS = """
import json, os, sys, time, torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM as auto
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
auto.from_pretrained(sys.argv[3])
imported, start = peak(), time.perf_counter()
if sys.argv[1].endswith(".gguf"):  # as from_pretrained reads it, which asks for accelerate besides
    folder, file = os.path.split(sys.argv[1])
    config = AutoConfig.from_pretrained(folder, gguf_file=file)
    with torch.device("meta"):
        model = auto.from_config(config)
    tensors = load_gguf_checkpoint(sys.argv[1], return_tensors=True, model_to_load=model)["tensors"]
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
else:
    model = auto.from_pretrained(sys.argv[1], dtype=torch.float32 if sys.argv[2] == "fp32" else torch.bfloat16)
"""
TOLD = """
seconds, weights = time.perf_counter() - start, sum(p.nbytes for p in model.parameters())
print(json.dumps({"seconds": seconds, "peak": peak(), "share": (peak() - imported) / weights}))
"""


def rows() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as place:
        for name, sizes in (("small", {"d_model": 64, "n_layers": 1}), ("large", {"d_model": 1024, "n_layers": 12})):
            model = empty(standard_config(32_000, 512, **sizes)).to(torch.bfloat16).to_empty(device="cpu")
            for parameter in model.parameters():
                torch.nn.init.ones_(parameter)
            save_model(model, Path(place) / name)
        small, large = Path(place) / "small", Path(place) / "large"
        gguf = MODELS["smollm2-135m-instruct"].fetch()
        ours, theirs = both(gguf, "fp32", small)
        yield row(
            "SmolLM2-135M from GGUF to fp32", ours["seconds"], "s", target=2.0, peer=theirs.get("seconds"), most=True
        )
        yield row(
            "its peak, imports included",
            ours["peak"] / 1e9,
            "GB",
            target=1.0,
            peer=scaled(theirs.get("peak")),
            most=True,
        )
        for dtype in ("bf16", "fp32"):
            ours, theirs = both(large, dtype, small)
            what = f"a bf16 folder to {dtype}"
            # The peer maps the file and reads nothing yet; here every number is looked at. No target, so.
            yield {**row(what, ours["seconds"], "s", peer=theirs.get("seconds"), most=True), "met": None}
            yield row(f"{what}, peak", ours["share"], "of the weights", target=1.1, peer=theirs.get("share"), most=True)


def scaled(bytes_: float | None) -> float | None:
    return None if bytes_ is None else bytes_ / 1e9


def both(path: Path, dtype: str, small: Path) -> tuple[dict[str, float], dict[str, float]]:
    """What we and the peer measure; nothing of the peer where it is left out."""
    ours = measured(OURS, path, dtype, small, REPEATS)
    if "--no-peer" in sys.argv or find_spec("transformers") is None or find_spec("gguf") is None:
        return ours, {}
    return ours, measured(THEIRS, path, dtype, small, PEER_REPEATS)


def measured(code: str, path: Path, dtype: str, small: Path, repeats: int) -> dict[str, float]:
    """Medians over fresh processes. small: a folder that is loaded first, so that all is imported."""
    command = [sys.executable, "-c", PEAK + code + TOLD, str(path), dtype, str(small)]
    found = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(repeats)
    ]
    return {name: median(one[name] for one in found) for name in found[0]}
