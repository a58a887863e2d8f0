"""The run folder: stages are skipped, continued or made anew as they should, and no moment to be killed at loses
anything.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from athanor.base.errors import AthanorError, RunError
from athanor.base.files import read_json, sha256_file
from athanor.base.run import Run, Stage


def open_run(root: Path, **options: Any) -> Run:
    return Run(root, {"budget": "10m"}, "1.0", ["first"], **options)


def perform(run: Run, text: str = "made", settings: dict[str, Any] | None = None) -> tuple[Stage, bool]:
    """A stage that writes one file; also whether there was anything to do."""
    stage = run.stage("first", settings or {"size": 1}, {"corpus": "abc"})
    if stage.finished:
        return stage, False
    with stage.working():
        (stage.folder / "out").mkdir(exist_ok=True)
        (stage.folder / "out" / "a.txt").write_text(text)
        stage.finish({"tokens": 3}, ["out"], {"share_of_peak": 0.5})
    return stage, True


def test_a_finished_stage_is_skipped_and_keeps_its_record(tmp_path: Path) -> None:
    with open_run(tmp_path / "r") as run:
        stage, worked = perform(run)
        assert worked
    record = read_json(stage.folder / "stage.json")
    assert record["outputs"]["out/a.txt"] == {"sha256": sha256_file(stage.folder / "out/a.txt"), "bytes": 4}
    with open_run(tmp_path / "r") as run:
        again, worked = perform(run)
        assert not worked
    assert again.metrics == {"tokens": 3}
    assert again.output_fingerprint == stage.output_fingerprint
    assert again.seconds == pytest.approx(stage.seconds)
    assert read_json(stage.folder / "stage.json") == record


def test_two_runs_differ_only_in_timing(tmp_path: Path) -> None:
    records = []
    for name in ("a", "b"):
        with open_run(tmp_path / name) as run:
            stage, _ = perform(run)
        records.append(read_json(stage.folder / "stage.json"))
        del records[-1]["timing"]
    assert records[0] == records[1]


def test_changed_settings_set_the_old_stage_aside(tmp_path: Path) -> None:
    with open_run(tmp_path / "r") as run:
        perform(run, "old")
    with open_run(tmp_path / "r") as run:
        stage, worked = perform(run, "new", {"size": 2})
    assert worked
    assert (stage.folder / "out" / "a.txt").read_text() == "new"
    assert (tmp_path / "r" / "first.replaced" / "out" / "a.txt").read_text() == "old"


@pytest.mark.parametrize(
    "damage", [lambda file: file.unlink(), lambda file: file.write_text("ma"), lambda file: file.write_text("longer")]
)
def test_a_damaged_output_is_made_again(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    with open_run(tmp_path / "r") as run:
        stage, _ = perform(run)
    damage(stage.folder / "out" / "a.txt")
    with open_run(tmp_path / "r") as run:
        stage, worked = perform(run)
    assert worked
    assert (stage.folder / "out" / "a.txt").read_text() == "made"


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("outputs"), lambda record: record.update(outputs={"a": None}),
        lambda record: record.update(timing=None), lambda record: record["timing"].update(seconds="x"),
        lambda record: record.pop("metrics"), lambda record: record.update(status="done"),
        lambda record: record.update(fingerprint=3), lambda record: record["metrics"].update(tokens=4),
    ],
)  # fmt: skip
def test_a_damaged_record_is_named_and_removing_the_stage_helps(
    change: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    with open_run(tmp_path / "r") as run:
        stage, _ = perform(run)
    record = read_json(stage.folder / "stage.json")
    change(record)
    (stage.folder / "stage.json").write_text(json.dumps(record))
    with open_run(tmp_path / "r") as run, pytest.raises(RunError, match=r"stage\.json is damaged\. Remove .*first"):
        perform(run)
    shutil.rmtree(stage.folder)
    with open_run(tmp_path / "r") as run:
        assert perform(run)[1]


def test_a_stage_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    with open_run(tmp_path / "r") as run:
        stage, _ = perform(run)
    record = read_json(stage.folder / "stage.json")
    (stage.folder / "stage.json").write_text(json.dumps({**record, "schema_version": 99}))
    with open_run(tmp_path / "r") as run, pytest.raises(RunError, match="newer version"):
        perform(run)


@pytest.mark.parametrize("content", ["[]", "{", '{"a": 2}', None])
def test_a_stage_reads_only_what_it_wrote(content: str | None, tmp_path: Path) -> None:
    with open_run(tmp_path / "r") as run:
        stage = run.stage("first", {}, {})
        with stage.working():
            assert stage.freeze("found.json", lambda: {"a": 1}) == {"a": 1}
            stage.finish({}, ["found.json"])
        assert stage.read("found.json") == {"a": 1}
        path = stage.folder / "found.json"
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(RunError, match=r"found\.json is (damaged|missing)\. Remove .*first"):
            stage.read("found.json")


def test_a_damaged_clock_costs_only_time(tmp_path: Path) -> None:
    with open_run(tmp_path / "r") as run:
        run.stage("first", {}, {})
    for text in ('{"seconds": "x"}', "[1]", "{", '{"seconds": null}'):
        (tmp_path / "r" / "first" / "timing.json").write_text(text)
        with open_run(tmp_path / "r") as run:
            assert run.stage("first", {}, {}).seconds == 0


def test_fresh_starts_over_whatever_the_record_says(tmp_path: Path) -> None:
    with open_run(tmp_path / "r") as run:
        perform(run)
    (tmp_path / "r" / "run.json").write_text("{")
    with open_run(tmp_path / "r", fresh=True) as run:
        assert perform(run)[1]


def test_a_half_done_stage_keeps_its_files_and_its_frozen_plan(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "r") as run:
        stage = run.stage("first", {}, {})
        with stage.working():
            assert stage.freeze("plan.json", lambda: {"tokens": 7}) == {"tokens": 7}
            (stage.folder / "half").write_text("done")
            raise KeyboardInterrupt
    with open_run(tmp_path / "r") as run:
        stage = run.stage("first", {}, {})
        assert not stage.finished
        assert (stage.folder / "half").read_text() == "done"
        assert stage.freeze("plan.json", lambda: pytest.fail("decided twice")) == {"tokens": 7}


def test_active_seconds_add_up_over_processes_and_exclude_pauses(tmp_path: Path) -> None:
    spent, began = 0.0, time.monotonic()
    for _ in range(2):
        with open_run(tmp_path / "r") as run:
            stage = run.stage("first", {}, {})
            assert stage.seconds == pytest.approx(spent)
            with stage.working():
                time.sleep(0.05)
            spent = stage.seconds
        time.sleep(0.1)
    assert 0.1 <= spent <= time.monotonic() - began - 0.2
    with open_run(tmp_path / "r") as run:
        stage = run.stage("first", {}, {})
        with stage.working():
            stage.finish({}, [])
        assert run.seconds == pytest.approx(stage.seconds)
        assert stage.seconds >= spent


def test_seconds_of_a_killed_process_count_up_to_its_last_beat(tmp_path: Path) -> None:
    with open_run(tmp_path / "r") as run:
        stage = run.stage("first", {}, {})
        with stage.working():
            time.sleep(0.03)
            stage.beat(every=0)
            beaten = read_json(stage.folder / "timing.json")["seconds"]
    (stage.folder / "timing.json").write_text(json.dumps({"seconds": beaten}))  # nothing after the beat was written
    with open_run(tmp_path / "r") as run:
        assert run.stage("first", {}, {}).seconds == beaten >= 0.03


def test_exactness_is_remembered(tmp_path: Path) -> None:
    with open_run(tmp_path / "r") as run:
        stage = run.stage("first", {}, {})
        assert stage.exactness is None
        with stage.working():
            stage.note_exactness({"threads": 2})
            stage.beat(every=0)
    with open_run(tmp_path / "r") as run:
        assert run.stage("first", {}, {}).exactness == {"threads": 2}


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from athanor.base.run import Run\n"
        "run = Run(Path(sys.argv[1]), {}, '1.0', []); print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "r")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match=f"in use by another process .{holder.pid}."):
            open_run(tmp_path / "r")
    finally:
        holder.kill()
        holder.communicate()
    open_run(tmp_path / "r").__exit__()


@pytest.mark.parametrize(
    ("content", "fresh", "named"),
    [
        ('{"schema_version": 999}', False, "newer version"),
        ('{"schema_version": 999}', True, "newer version"),
        ('{"schema_version": "x"}', False, "damaged"),
        ("{}", False, "damaged"),
    ],
)
def test_a_run_that_cannot_be_read_is_refused_untouched(content: str, fresh: bool, named: str, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "stage.json").write_text("{}")
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=named):
        open_run(tmp_path, fresh=fresh)
    assert (tmp_path / "run.json").read_text() == content
    assert (tmp_path / "first" / "stage.json").exists()


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"3", b""])
@pytest.mark.parametrize("file", ["run.json", "first/stage.json"])
def test_a_corrupt_record_is_one_clear_sentence(content: bytes, file: str, tmp_path: Path) -> None:
    with open_run(tmp_path / "r") as run:
        perform(run)
    (tmp_path / "r" / file).write_bytes(content)
    with pytest.raises(AthanorError, match="json"), open_run(tmp_path / "r") as run:
        perform(run)


def test_fresh_removes_stages_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "r"
    with open_run(root) as run:
        perform(run)
    (root / "notes.txt").write_text("mine")
    (root / "pictures").mkdir()
    (root / "pictures" / "a.png").write_bytes(b"1")
    with open_run(root, fresh=True) as run:
        assert not (root / "first").exists()
        _, worked = perform(run)
        assert worked
    assert (root / "notes.txt").read_text() == "mine"
    assert (root / "pictures" / "a.png").exists()


def test_a_foreign_folder_with_the_name_of_a_stage_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "thesis.txt").write_text("years of work")
    with open_run(tmp_path) as run, pytest.raises(RunError, match=r"has files but no stage\.json"):
        run.stage("first", {}, {})
    assert (tmp_path / "first" / "thesis.txt").read_text() == "years of work"


def test_a_stage_killed_before_its_first_file_begins_again(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / ".stage.json.partial").write_text('{"sche')
    with open_run(tmp_path) as run:
        assert perform(run)[1]


_FINISHING = """
import os, sys
from pathlib import Path
import athanor.base.files as files
from athanor.base.run import Run

moment, calls = int(sys.argv[2]), 0

def dying(original):
    def call(*arguments, **options):
        global calls
        calls += 1
        if armed and calls == moment:
            os.kill(os.getpid(), 9)
        return original(*arguments, **options)
    return call

armed = False
os.replace, os.fsync, os.open = dying(os.replace), dying(os.fsync), dying(os.open)
with Run(Path(sys.argv[1]), {}, "1.0", []) as run:
    stage = run.stage("first", {}, {})
    if not stage.finished:
        with stage.working():
            (stage.folder / "a.txt").write_text("made")
            calls, armed = 0, True
            stage.finish({"tokens": 3}, ["a.txt"])
print("survived")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_kill_at_any_system_call_of_finish_leaves_a_stage_that_continues(tmp_path: Path) -> None:
    for moment in range(1, 20):
        root = tmp_path / str(moment)
        done = subprocess.run(
            [sys.executable, "-c", _FINISHING, str(root), str(moment)], capture_output=True, text=True, env=os.environ
        )
        if done.returncode == 0:
            assert done.stdout == "survived\n"
            assert moment > 5, "the kill was never reached"
            return
        assert done.returncode == -signal.SIGKILL, done.stderr
        with open_run(root) as run:
            stage = run.stage("first", {}, {})
            assert (stage.folder / "a.txt").read_text() == "made"
            if not stage.finished:
                with stage.working():
                    stage.finish({"tokens": 3}, ["a.txt"])
            assert stage.metrics == {"tokens": 3}
        assert not [
            file for file in (root / "first").iterdir() if file.name not in ("stage.json", "a.txt", "timing.json")
        ]
    pytest.fail("finish never came to its end")
