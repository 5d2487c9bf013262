"""Build a library from C++ source with the machine's compiler, once: it is kept in the user's cache directory.

A library's file name is a hash of everything that decides its code: source, flags, compiler and its version, processor.
Of two processes that need it at the same time one waits for the other. Its own SHA-256 is kept beside it, so a damaged
one is noticed and built again.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from deltaprop.errors import UserError
from deltaprop.user_cache import default_cache

# No -ffast-math: NaN and infinity must be seen. The two -fno- change no value; without them exp sets errno and a
# comparison may raise a flag, and loops over either are not vectorised.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")
COMPILERS = ("c++", "g++", "clang++")
SECONDS = 120  # a build takes about 3


class BuildError(UserError):
    """There is no compiler, or it fails; the message is one line."""


@dataclass(frozen=True)
class Toolchain:
    """What decides the code of a library, besides its source.

    Attributes:
        compiler: The command, with its options.
        version: What it says about its version, such as ``gcc version 12.2.0 (Debian 12.2.0-14)``.
        flags: The flags of the build.
        processor: The model of the processor, which ``-march=native`` depends on.
    """

    compiler: tuple[str, ...]
    version: str
    flags: tuple[str, ...]
    processor: str

    def to_json(self) -> dict[str, str]:
        """Return it as in config.json, beside the versions of the packages."""
        flags = shlex.join([*self.compiler[1:], *self.flags])
        return {"compiler": self.version, "compiler_flags": flags, "processor": self.processor}


def find_toolchain() -> Toolchain:
    """Return the compiler in ``$CXX``, else the first of c++, g++ and clang++ that is there.

    Raises:
        BuildError: If there is none.
    """
    return _toolchain(os.environ.get("CXX", ""), os.environ.get("PATH", ""))


@functools.lru_cache
def _toolchain(cxx: str, path: str) -> Toolchain:
    try:
        candidates = [shlex.split(cxx)] if cxx.strip() else [[name] for name in COMPILERS]
    except ValueError as error:
        raise BuildError(f"$CXX, {cxx!r}, cannot be read as a command: {error}") from error
    if not candidates[0][0]:
        raise BuildError(f"$CXX, {cxx!r}, names no compiler")
    for command in candidates:
        if shutil.which(command[0], path=path) is not None:
            said = _run([*command, "-v"], "to tell its version")
            lines = [line.strip() for line in said.stderr.splitlines() if " version " in line]
            return Toolchain(tuple(command), (lines or ["unknown version"])[-1], FLAGS, processor())
    if cxx.strip():
        raise BuildError(f"$CXX names {candidates[0][0]!r}, and there is no such command")
    raise BuildError("there is no C++ compiler: none of c++, g++ and clang++ is on the path, and $CXX is not set")


@functools.lru_cache
def processor() -> str:
    """Return the model of the processor and the instructions it has, shortened to a hash."""
    name, flags = platform.processor() or platform.machine(), ""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            if key.strip() in ("flags", "Features"):
                flags = value.strip()
                break
    except OSError:
        pass
    return f"{name} ({hashlib.sha256(flags.encode()).hexdigest()[:8]})" if flags else name


def load_library(
    source: str,
    toolchain: Toolchain | None = None,
    cache: Path | None = None,
    on_build: Callable[[], object] = lambda: None,
) -> ctypes.CDLL:
    """Return the library of a source, built now or before.

    Args:
        source: C++.
        toolchain: The compiler and its flags; by default those of :func:`find_toolchain`.
        cache: The folder where libraries are kept; by default ``compiled`` in the user's cache directory.
        on_build: Called if it has to be built.

    Raises:
        BuildError: If there is no compiler, it fails, or the folder cannot be written.
    """
    toolchain = toolchain or find_toolchain()
    try:
        cache = cache or default_cache() / "compiled"
    except RuntimeError as error:  # of Path.home
        raise BuildError(f"there is no place to keep the library: {error}; set XDG_CACHE_HOME") from error
    decides = "\0".join([source, *toolchain.compiler, *toolchain.to_json().values()])
    path = cache / f"{hashlib.sha256(decides.encode()).hexdigest()[:32]}.so"
    if path not in _loaded:
        _loaded[path] = _load(source, toolchain, path, on_build)
    return _loaded[path]


_loaded: dict[Path, ctypes.CDLL] = {}


def _load(source: str, toolchain: Toolchain, path: Path, on_build: Callable[[], object]) -> ctypes.CDLL:
    if not _is_whole(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(path.with_suffix(".lock")):
                if not _is_whole(path):  # another process may have built it meanwhile
                    on_build()
                    _build(source, toolchain, path)
        except OSError as error:
            what = f"{error.filename or path.parent}: {error.strerror or error}"
            raise BuildError(f"the library could not be written, {what}") from error
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        _digest_of(path).unlink(missing_ok=True)  # to be built again at the next start
        raise BuildError(f"the library could not be loaded: {str(error).splitlines()[0]}") from error


def _is_whole(path: Path) -> bool:
    """Return whether a library is there, with the content it was built with."""
    try:
        return _digest_of(path).read_text(encoding="ascii") == hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, UnicodeDecodeError):
        return False


def _digest_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _build(source: str, toolchain: Toolchain, path: Path) -> None:
    """Build a library, and keep its source beside it, to read."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".building-") as folder:
        source_file, built, digest = (Path(folder, name) for name in ("epoch.cpp", "epoch.so", "epoch.sha256"))
        source_file.write_text(source, encoding="utf-8")
        command = [*toolchain.compiler, *toolchain.flags, "-o", str(built), str(source_file)]
        said = _run(command, "the build")
        if said.returncode or not built.is_file():
            raise BuildError(f"{toolchain.compiler[0]} failed: {_first_error(said.stderr, said.returncode)}")
        digest.write_text(hashlib.sha256(built.read_bytes()).hexdigest(), encoding="ascii")
        os.replace(source_file, path.with_suffix(".cpp"))
        os.replace(built, path)  # another process that has the old file open keeps that one
        os.replace(digest, _digest_of(path))


def _run(command: list[str], what: str) -> subprocess.CompletedProcess[str]:
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
            errors="replace", start_new_session=True, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except OSError as error:
        raise BuildError(f"{command[0]} could not be run: {error.strerror or error}") from error
    try:
        out, err = process.communicate(timeout=SECONDS)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # the compiler's own processes, too
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise BuildError(f"{command[0]} did not finish {what} within {SECONDS} s") from None
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _first_error(said: str, code: int) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line or "failed:" in line]  # the linker's own lines have "failed:"
    errors.sort(key=lambda line: line.startswith("collect2"))  # which says only that the linker failed
    return ([*errors, *lines, f"exit code {code}" if code else "it has written no library"])[0][:300]
