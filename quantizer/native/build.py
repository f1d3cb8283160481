"""Compiles the kernels into one shared library that has them for several instruction sets.

The library is made when the package is installed (`hatch_build.py`), or by `python quantizer/native/build.py`. That
takes a C++ compiler and nothing else; where there is none the library is left out, and torch's operators do the work.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_DIRECTORY = Path(__file__).parent

#: What each instruction set asks of the compiler, from the newest to the oldest.
INSTRUCTION_SETS = {
    "avx512vnni": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c"),
    "avxvnni": ("-mavx2", "-mavxvnni", "-mfma", "-mf16c"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "sse4": ("-msse4.1",),
}
#: Floats are added and fused as the source says and not otherwise, so that a row comes out the same in any company.
_FLOAT_FLAGS = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fwrapv", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden"),
    *_FLOAT_FLAGS,
)


def library_path() -> Path:
    """Where the library is, if it was built of just these sources: of others, its interface might be another."""
    digest = hashlib.sha256()
    for path in sorted(_DIRECTORY.glob("*.h")) + sorted(_DIRECTORY.glob("*.cpp")):
        digest.update(path.read_bytes())
    return _DIRECTORY / f"kernels-{digest.hexdigest()[:16]}.so"


def build() -> Path | None:
    """Compiles the library, unless it is there already; None if this host cannot."""
    library = library_path()
    compiler = _find_compiler()
    if compiler is None or sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    if not library.is_file():
        with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor() as pool:
            objects = [
                made
                for paths in pool.map(lambda name: _compile(compiler, name, Path(directory)), INSTRUCTION_SETS)
                for made in paths
            ]
            linked = Path(directory, library.name)
            if not objects or not _run(compiler, "-shared", "-o", linked, *objects):
                return None
            for old in _DIRECTORY.glob("kernels-*.so"):
                old.unlink()
            shutil.copy(linked, library.with_suffix(".new"))
            library.with_suffix(".new").replace(library)
    return library


def _compile(compiler: str, instruction_set: str, directory: Path) -> list[Path]:
    """Object files of all sources for an instruction set; none if the compiler is too old to know it."""
    made = []
    for source in sorted(_DIRECTORY.glob("*.cpp")):
        made.append(directory / f"{source.stem}_{instruction_set}.o")
        options = (*_FLAGS, *INSTRUCTION_SETS[instruction_set], f"-DLLMPQ_INSTRUCTION_SET={instruction_set}")
        if not _run(compiler, *options, "-c", source, "-o", made[-1]):
            return []
    return made


def _find_compiler() -> str | None:
    names = (os.environ.get("CXX"), sysconfig.get_config_var("CXX"), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name.split()[0]))), None)


def _run(*command: str | Path) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603 the compiler


if __name__ == "__main__":
    print(build() or "The kernels cannot be built on this host: torch's operators will be used.")  # noqa: T201 a script
