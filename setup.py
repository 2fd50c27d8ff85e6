"""Builds the C++ extension with CMake; everything else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def _require_compiler(environment: Mapping[str, str]) -> None:
    """Stop with one line where CMake would say hundreds; Windows' own compiler is on no path."""
    named = environment.get("CXX", "").split()[:1]
    names = named or ["c++", "g++", "clang++", "icpx"]
    if os.name != "nt" and not any(shutil.which(n, path=environment["PATH"]) for n in names):
        what = f"; CXX is {named[0]!r}, which is not there" if named else ""
        sys.exit(
            "error: dkn_engine needs a C++17 compiler: apt install g++ (Debian, Ubuntu), dnf "
            f"install gcc-c++ (Fedora), xcode-select --install (macOS){what}"
        )


class CMakeBuild(build_ext):
    """Configures and builds the CMake project into the place where setuptools wants the module.

    The environment may set ``DKN_BUILD_TYPE`` (Release, Debug, RelWithDebInfo) and ``DKN_WERROR``.
    """

    def build_extension(self, ext: Extension) -> None:
        """Build one extension; ``build/`` is kept between runs, so rebuilds are incremental."""
        environment = self._environment()
        _require_compiler(environment)
        ninja = shutil.which("ninja", path=environment["PATH"])
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            f"-S{ROOT}",
            f"-B{build}",
            "--log-level=WARNING",
            "-GNinja",
            # Given each time, because the one of an isolated build is gone by the next.
            *([f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
            f"-DCMAKE_BUILD_TYPE={os.environ.get('DKN_BUILD_TYPE', 'Release')}",
            "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DDKN_WERROR={os.environ.get('DKN_WERROR', 'OFF')}",
        ]
        for command in (configure, ["cmake", "--build", str(build), "--target", "_native"]):
            subprocess.run(command, check=True, env=environment)
        # Where editors and clang's tools look for it.
        shutil.copy(build / "compile_commands.json", build.parent)

    @staticmethod
    def _environment() -> dict[str, str]:
        """The environment, with cmake and ninja of a virtual environment that is not active."""
        path = os.environ.get("PATH", os.defpath)
        return {**os.environ, "PATH": os.pathsep.join([path, str(Path(sys.executable).parent)])}


setup(
    ext_modules=[Extension("dkn_engine._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
