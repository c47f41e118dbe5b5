"""Builds the sparse CPU kernels; everything else about the package is in pyproject.toml."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("onnxprune", "runtime", "csrc")
FLAGS = {
    "msvc": ["/std:c++17", "/O2", "/EHsc"],
    "unix": ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-pthread"],
}


class BuildKernels(build_ext):
    """Compiles a library for ONNX Runtime, which has no Python module in it."""

    def build_extension(self, ext: Extension) -> None:
        """Adds the flags of the compiler that was found."""
        kind = "msvc" if self.compiler.compiler_type == "msvc" else "unix"
        ext.extra_compile_args = FLAGS[kind]
        ext.extra_link_args = [] if kind == "msvc" else ["-pthread"]
        one_by_one = self.compiler.compile

        def side_by_side(sources: list[str], **options) -> list[str]:
            """Most of an installation's time would be spent on one core here."""
            if not getattr(self.compiler, "initialized", True):
                self.compiler.initialize()  # MSVC would do it in each thread
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                compile_one = partial(one_by_one, **options)
                return list(chain.from_iterable(pool.map(compile_one, ([s] for s in sources))))

        self.compiler.compile = side_by_side
        super().build_extension(ext)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """The function that ONNX Runtime looks for, instead of a module's."""
        return ["RegisterCustomOps"]


setup(
    ext_modules=[
        # Optional: without a compiler the package works, and `onnxprune doctor` says what it lacks.
        Extension(
            "onnxprune.runtime._kernels",
            sources=sorted(path.as_posix() for path in SOURCES.glob("*.cpp")),
            depends=sorted(path.as_posix() for path in SOURCES.glob("*.h")),
            language="c++",
            optional=True,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
