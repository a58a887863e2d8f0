"""The kernels are compiled with the package, or on first use; without a compiler everything else still works. The
sanitizers watch whole steps of several models on every instruction set.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from athanor.engine.native import library
from athanor.engine.native.compiling import FLAGS, compile_library, compilers, library_name
from athanor.engine.native.library import NativeError

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(not compilers(), reason="there is no C compiler")


@needs_compiler
def test_a_library_is_compiled_once_and_refused_when_others_may_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATHANOR_CACHE", str(tmp_path))
    made: list[Path] = []

    def compile_nothing(target: Path) -> None:
        target.write_bytes(b"")
        made.append(target)

    monkeypatch.setattr(library, "compile_library", compile_nothing)
    place = library._find()
    assert place.parent == tmp_path / "native"
    assert library._find() == place
    assert len(made) == 1
    place.chmod(0o777)
    with pytest.raises(NativeError, match="somebody else"):
        library._find()


def test_without_a_compiler_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATHANOR_CACHE", str(tmp_path))
    monkeypatch.setattr(library, "compilers", list)
    with pytest.raises(NativeError, match="ziglang"):
        library._find()


@needs_compiler
def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATHANOR_CACHE", str(tmp_path))
    monkeypatch.setattr("athanor.engine.native.compiling.compilers", lambda: [["cc", "--no-such-flag"]])
    with pytest.raises(NativeError, match="no-such-flag"):
        library._find()
    assert not list((tmp_path / "native").glob("*.so"))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("compiler", [True, False])
def test_a_wheel_is_made_with_the_kernels_or_without(compiler: bool, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "athanor", source / "athanor", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    environment = {**os.environ, "PATH": os.environ["PATH"] if compiler else str(tmp_path)}
    environment.pop("CC", None)
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert (f"athanor/engine/native/{library_name()}" in zipfile.ZipFile(wheel).namelist()) == compiler
    assert wheel.stem.endswith("none-any") != compiler


def _sanitized(tmp_path: Path, kind: str, runtime: str) -> subprocess.CompletedProcess[str]:
    """tests/engine/native_walk.py on kernels that were compiled with a sanitizer."""
    place = tmp_path / "kernels.so"
    flags = (*FLAGS, "-O0", "-g", f"-fsanitize={kind}", "-fno-sanitize-recover=all")
    command = compile_library(place, flags=flags)
    found = subprocess.run([*command, f"-print-file-name={runtime}"], capture_output=True, text=True, check=False)
    where = found.stdout.strip()
    if not Path(where).is_file():
        pytest.skip(f"{command[0]} has no {runtime}")
    environment = {
        **os.environ, "LD_PRELOAD": where, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "report_bugs=1:exitcode=66:ignore_noninstrumented_modules=1",
    }  # fmt: skip
    walk = Path(__file__).with_name("native_walk.py")
    command = [sys.executable, str(walk), str(place)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("kind", "runtime"), [("address,undefined", "libasan.so"), ("thread", "libtsan.so")], ids=["memory", "races"]
)
def test_sanitizers_find_nothing(kind: str, runtime: str, tmp_path: Path) -> None:
    done = _sanitized(tmp_path, kind, runtime)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "done", done.stderr[-4000:]
