"""What pyproject.toml cannot say: the kernels in C are compiled into the package where there is a compiler. Without one
the package is installed all the same and uses torch's operations.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

FOLDER = Path("athanor", "engine", "native")


def _compiling() -> Any:
    """The module by its file, because the package cannot be imported before it is installed."""
    spec = importlib.util.spec_from_file_location("compiling", Path(__file__).parent / FOLDER / "compiling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMPILING = _compiling()


class BuildWithKernels(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # compiled on first use, so that changed sources are noticed
            return
        target = Path(self.build_lib) / FOLDER / COMPILING.library_name()
        try:
            COMPILING.compile_library(target.absolute())
        except (COMPILING.CompileError, OSError) as error:
            target.unlink(missing_ok=True)
            self.warn(f"The kernels in C were not compiled: {error}. torch's operations will be used.")


class WithKernels(Distribution):
    def has_ext_modules(self) -> bool:
        return bool(COMPILING.compilers())


class AnyPython(bdist_wheel):
    """The library is found by ctypes, so it depends on the platform and not on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        *_, platform = super().get_tag()
        return "py3", "none", platform


setup(distclass=WithKernels, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": AnyPython})
