"""The compiled kernels as ctypes functions: the library that was built with the package, or one that is compiled once
into the cache folder, under a name that its sources and compiler give.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from athanor.base.downloads import cache_folder
from athanor.base.errors import AthanorError
from athanor.base.files import atomic_path, locked
from athanor.base.progress import say
from athanor.engine.native.compiling import CompileError, compile_library, compilers, library_name

INSTRUCTIONS = ("scalar", "avx2", "avx512")
"""By number; each gives the same bits."""


class NativeError(AthanorError):
    """The kernels cannot be had here."""


class Matrix(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("data", "scales", "minima", "bias")),
        *((name, c_int32) for name in ("format", "rows", "columns", "unused")),
    )


class Layer(Structure):
    _fields_ = (
        *((name, Matrix) for name in ("query", "key", "value", "output", "gate", "up", "down")),
        *((name, c_void_p) for name in ("attention_norm", "mlp_norm", "query_norm", "key_norm")),
        ("epsilon", c_float),
        *((name, c_int32) for name in ("window", "turned", "unused")),
    )


class Model(Structure):
    _fields_ = (
        ("embedding", Matrix),
        ("head", Matrix),
        ("layers", POINTER(Layer)),
        ("norm", c_void_p),
        ("epsilon", c_float),
        ("score_scale", c_float),
        *((name, c_int32) for name in ("d_model", "d_ff", "n_layers", "n_heads", "n_kv_heads", "head_dim")),
        *((name, c_int32) for name in ("vocab_size", "cached", "max_seq_len", "wide")),
    )


class Segment(Structure):
    _fields_ = tuple((name, c_int32) for name in ("first", "count", "start", "blocks"))


class Job(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("tokens", "blocks", "wanted", "segments", "cosine", "sine", "cache", "logits")),
        ("block_bytes", c_int64),
        *((name, c_int32) for name in ("rows", "n_segments", "n_wanted", "angles")),
    )


class Filters(Structure):
    _fields_ = (*((name, c_float) for name in ("temperature", "top_p", "min_p")), ("top_k", c_int32))


def library() -> ctypes.CDLL:
    """Raises NativeError, with the reason, where there is none and none can be compiled; that is tried once."""
    found = _opened()
    if isinstance(found, NativeError):
        raise found
    return found


@cache
def _opened() -> ctypes.CDLL | NativeError:
    try:
        return open_library(_find())
    except NativeError as error:
        return error


def open_library(path: Path) -> ctypes.CDLL:
    """Raises NativeError for a file that is not these kernels."""
    try:
        found = ctypes.CDLL(str(path))
        sizes = (c_int32 * 5)()
        found.athanor_sizes(sizes)
    except (OSError, AttributeError) as error:
        raise NativeError(f"The compiled kernels cannot be loaded ({error}).", f"Remove {path}.") from None
    if list(sizes) != [ctypes.sizeof(kind) for kind in (Matrix, Layer, Model, Segment, Job)]:
        raise NativeError(f"{path} was compiled from other sources.", "Remove it.")
    found.athanor_best.restype = c_int32
    found.athanor_open.argtypes = (POINTER(Model), c_int32, c_int32, c_int32)
    found.athanor_open.restype = c_void_p
    found.athanor_close.argtypes = (c_void_p,)
    found.athanor_forward.argtypes = (c_void_p, POINTER(Job))
    found.athanor_forward.restype = None
    found.athanor_product.argtypes = (c_int32, POINTER(Matrix), c_int32, c_void_p, c_int32, c_void_p)
    found.athanor_product.restype = c_int32
    found.athanor_draw.argtypes = (c_int32, c_void_p, c_int32, c_int32, POINTER(Filters), c_void_p, c_void_p, c_void_p)
    found.athanor_draw.restype = c_int32
    found.athanor_logprobs.argtypes = (c_int32, c_void_p, c_int32, c_int32, c_void_p, c_void_p)
    found.athanor_logprobs.restype = None
    found.athanor_train.argtypes = (c_void_p, c_int32, c_int32, c_int32, c_void_p)
    found.athanor_train.restype = c_int32
    found.athanor_tiles.restype = c_int32
    return found


def best_instructions() -> str:
    """The fastest that processor and system support. Raises NativeError."""
    return INSTRUCTIONS[library().athanor_best()]


def is_compiled() -> bool:
    """Whether `library` finds one without compiling it. Raises NativeError where there is no compiler either."""
    return _place().is_file()


def _place() -> Path:
    name = library_name()
    built = Path(__file__).with_name(name)
    if built.is_file():
        return built
    commands = compilers()
    if not commands:
        raise NativeError(
            "The kernels in C are not compiled, and there is no C compiler.",
            "Install gcc or clang, or `pip install ziglang`.",
        )
    return cache_folder() / "native" / f"{_compiler_key(commands)}-{name}"


def _find() -> Path:
    place = _place()
    if place.parent == Path(__file__).parent:  # installed, with the rights of the package
        return place
    if not place.is_file():
        with locked(place.parent / ".lock"):
            if not place.is_file():
                _compile(place)
    if hasattr(os, "getuid") and (place.stat().st_uid != os.getuid() or place.stat().st_mode & 0o022):
        raise NativeError(f"{place} belongs to, or may be written by, somebody else.", "Remove it.")
    return place


def _compile(place: Path) -> None:
    place.parent.chmod(0o700)
    say("Compiling the kernels in C, once …")
    try:
        with atomic_path(place) as temporary:
            compile_library(temporary)
            temporary.chmod(0o700)
    except CompileError as error:
        raise NativeError(
            f"The kernels in C could not be compiled ({error}).",
            "Try another compiler: CC=gcc, or `pip install ziglang`.",
        ) from None


def _compiler_key(commands: list[list[str]]) -> str:
    digest = hashlib.sha256()
    for command in commands:
        digest.update("\0".join(command).encode())
        program = Path(command[0])
        if program.is_file():
            status = program.resolve().stat()
            digest.update(f"{program.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:8]
