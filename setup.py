"""Builds the native module ``tfq._C`` with CMake and Ninja; everything else is in pyproject.toml."""

import os
import pathlib
import subprocess
import sys

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).parent.resolve()
FORWARDED = ("TFQ_CUDA", "TFQ_CUDA_ARCHS", "TFQ_WERROR")


class CMakeBuild(build_ext):
    """Runs the project's CMakeLists.txt instead of setuptools' compiler."""

    def build_extension(self, ext):
        """Configure, build and install `ext` where setuptools wants it."""
        build = pathlib.Path(self.build_temp).resolve()
        target = pathlib.Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build.mkdir(parents=True, exist_ok=True)
        options = [f"-D{name}={os.environ[name]}" for name in FORWARDED if name in os.environ]
        # Fresh: pip's isolated environment, which a cache of an earlier build names, is gone.
        configure = ["cmake", "--fresh", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *options]
        configure += [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(target)], check=True)


setup(ext_modules=[Extension("tfq._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
