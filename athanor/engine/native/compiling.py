"""Compiling the kernels. Needs nothing but the standard library, because the build of the package runs it too.

Functions for several instruction sets lie in one library and are chosen when it runs, so nothing depends on the
processor that compiles.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SOURCES = ("scalar.c", "avx2.c", "avx512.c", "pool.c", "step.c", "draw.c", "training.c")
FLAGS = ("-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-fPIC", "-shared")
LIBRARIES = ("-lpthread", "-lm")
_SECONDS = 300
_FOLDER = Path(__file__).parent


class CompileError(Exception):
    """What the compiler said, or why none was started."""


def compilers() -> list[list[str]]:
    """The commands that may serve: $CC, the usual names, and the compiler of the package `ziglang`."""
    found = [shlex.split(os.environ["CC"])] if os.environ.get("CC", "").strip() else []
    found += [[path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
    if find_spec("ziglang") is not None:
        found.append([sys.executable, "-m", "ziglang", "cc"])
    return found


def source_key() -> str:
    """Identifies sources and flags."""
    digest = hashlib.sha256(" ".join((*FLAGS, *LIBRARIES)).encode())
    for path in sorted((*_FOLDER.glob("*.c"), *_FOLDER.glob("*.h"))):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def library_name() -> str:
    """Of the library that belongs to these sources."""
    return f"kernels-{source_key()}.so"


def compile_library(target: Path, *, flags: tuple[str, ...] = FLAGS) -> list[str]:
    """Writes the library and returns the compiler's command. Raises CompileError when no compiler makes it."""
    if sys.platform not in ("linux", "darwin"):
        raise CompileError(f"the kernels are not made for {sys.platform}")
    commands = compilers()
    if not commands:
        raise CompileError("there is no C compiler")
    said = ""
    sources = [str(_FOLDER / name) for name in SOURCES]
    for command in commands:
        try:
            done = subprocess.run(
                [*command, *flags, *sources, *LIBRARIES, "-o", str(target)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            said = said or str(error)
            continue
        if done.returncode == 0 and target.is_file():
            return command
        lines = done.stderr.splitlines() or ["no reason"]
        said = said or f"{command[0]}: {next((line for line in lines if 'error' in line), lines[0])[:300]}"
    raise CompileError(said)
