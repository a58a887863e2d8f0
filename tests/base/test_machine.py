"""The machine as it is found: sane figures, and a process set up without overruling the user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from athanor.base.files import to_json
from athanor.base.machine import Rates, available_memory, describe, exactness_key, measure, peak_memory, usable_cores


def test_description_is_sane_and_can_be_saved() -> None:
    machine = describe()
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert 1 << 28 <= machine.memory < 1 << 50
    assert machine.system
    assert machine.processor
    assert "torch" in exactness_key()
    to_json(machine.as_dict())


def test_measured_rates_are_plausible() -> None:
    rates = measure(seconds=0.1)
    assert 1e8 < rates.fp32 < 1e15
    assert 1e7 < rates.bf16 < 1e16
    assert 1e8 < rates.read < 1e14
    to_json(rates.as_dict())


def test_bf16_has_to_win_by_a_tenth() -> None:
    assert Rates(100e9, 105e9, 1e9).precision == "fp32"
    assert Rates(100e9, 300e9, 1e9).precision == "bf16"
    assert Rates(100e9, 1e9, 1e9).best == 100e9


def test_available_memory_is_a_part_of_all() -> None:
    assert 1 << 20 < available_memory() <= describe().memory


def test_peak_memory_grows_with_what_is_used() -> None:
    before = peak_memory()
    block = bytearray(os.urandom(1)) * (before + (64 << 20))
    assert peak_memory() > before + (32 << 20)
    del block


def test_cores_follow_the_affinity_mask() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity masks on this system")
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("", 8)])
def test_cores_follow_a_containers_quota(quota: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda self, *_: quota)
    assert usable_cores() == expected


def test_the_users_environment_is_kept_and_set_before_torch() -> None:
    code = (
        "import sys, os, json; from athanor.base.machine import prepare_process\n"
        "prepare_process(); prepare_process(); assert 'torch' not in sys.modules\n"
        "print(json.dumps({k: os.environ.get(k) for k in ('GOMP_SPINCOUNT', 'TOKENIZERS_PARALLELISM')}))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "TOKENIZERS_PARALLELISM")}
    for given, expected in ((None, "10000"), ("300", "300")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | ({"GOMP_SPINCOUNT": given} if given else {}),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert f'"GOMP_SPINCOUNT": "{expected}"' in done.stdout
        assert '"TOKENIZERS_PARALLELISM": "false"' in done.stdout
