"""The log of a stage: whole after every crash, waiting on a full disk, the same for TensorBoard."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from athanor.base.errors import DiskFullError
from athanor.base.files import read_jsonl
from athanor.base.metrics import MetricsLog


def write_log(folder: Path, first: int, last: int, resumed_at: int = 0) -> None:
    log = MetricsLog(folder, None, resumed_at)
    for step in range(first, last + 1):
        log.write(step, {"loss": 1 / step}, {"seconds": 0.5})
    log.close()


@pytest.mark.parametrize(
    "tail", [b"", b'{"loss": 0.1, "ste', b'{"loss": 0.1, "step": 3', b"\x00\xff", b"[1]\n", b"{}\n", b"\n"]
)
@pytest.mark.parametrize("resumed_at", [0, 3, 5])
def test_a_resumed_log_equals_one_that_was_never_interrupted(tail: bytes, resumed_at: int, tmp_path: Path) -> None:
    write_log(tmp_path / "whole", 1, 8)
    write_log(tmp_path / "cut", 1, 5)
    for name in ("metrics.jsonl", "timing.jsonl"):
        with open(tmp_path / "cut" / name, "ab") as file:
            file.write(tail)
    write_log(tmp_path / "cut", resumed_at + 1, 8, resumed_at)
    for name in ("metrics.jsonl", "timing.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [line["step"] for line in read_jsonl(tmp_path / "cut" / "metrics.jsonl")] == [*range(1, 9)]


def test_tensorboard_gets_metrics_and_timing(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path, tmp_path / "events")
    log.write(1, {"loss": 2.5}, {"tokens_per_second": 10.0})
    log.show(1, {"said/1": "**却说** hé"})
    log.close()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert events.Scalars("loss")[0].value == 2.5
    assert events.Scalars("tokens_per_second")[0].step == 1
    (shown,) = events.Tensors("said/1")
    assert shown.tensor_proto.string_val[0].decode() == "**却说** hé"
    assert events.SummaryMetadata("said/1").plugin_data.plugin_name == "text"


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_on_a_full_disk_lines_wait_and_none_is_lost(tmp_path: Path) -> None:
    import resource

    write_log(tmp_path / "whole", 1, 20)
    log = MetricsLog(tmp_path / "full", None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for step in range(1, 21):
            if step == 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))  # in the middle of a line
            if step == 15:
                with pytest.raises(DiskFullError, match=r"metrics\.jsonl"):
                    log.sync()
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            log.write(step, {"loss": 1 / step}, {"seconds": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.close()
    for name in ("metrics.jsonl", "timing.jsonl"):
        assert (tmp_path / "full" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_tensorboard_on_a_full_disk_does_not_end_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = MetricsLog(tmp_path, tmp_path / "events")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log._events, "write", full)
    log.write(1, {"loss": 2.5})
    log.write(2, {"loss": 2.4})
    log.close()
    assert capsys.readouterr().err.count("TensorBoard is shown no more") == 1
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 2
