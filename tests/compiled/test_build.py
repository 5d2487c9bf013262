"""Libraries are built once, kept, and built again when anything that decides their code changes."""

from __future__ import annotations

import dataclasses
import os
import stat
import textwrap
from pathlib import Path

import pytest

from deltaprop import UserError
from deltaprop.compiled import BuildError, build, find_toolchain

SOURCE = 'extern "C" int answer() { return 42; }\n'


def fresh(cache: Path, source: str = SOURCE, **changes: object) -> int:
    """Return what a library answers, as a new process would load it: this one's memory of it is cleared."""
    build._loaded.clear()
    toolchain = dataclasses.replace(find_toolchain(), **changes)
    return build.load_library(source, toolchain, cache).answer()


def libraries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.so"))


def script(path: Path, text: str) -> str:
    """Write an executable shell script."""
    path.write_text("#!/bin/sh\n" + textwrap.dedent(text), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


class TestCache:
    def test_a_library_is_built_once(self, tmp_path: Path):
        assert fresh(tmp_path) == 42
        (library,) = libraries(tmp_path)
        built = library.stat().st_mtime_ns
        assert fresh(tmp_path) == 42
        assert library.stat().st_mtime_ns == built

    def test_its_source_is_kept_beside_it(self, tmp_path: Path):
        fresh(tmp_path)
        (library,) = libraries(tmp_path)
        assert library.with_suffix(".cpp").read_text(encoding="utf-8") == SOURCE

    def test_only_the_user_may_enter_the_folder(self, tmp_path: Path):
        fresh(tmp_path / "compiled")
        assert stat.S_IMODE((tmp_path / "compiled").stat().st_mode) == 0o700

    @pytest.mark.parametrize(
        "change",
        [{"version": "gcc version 99"}, {"processor": "another"}, {"flags": (*build.FLAGS, "-O1")}],
        ids=["version", "processor", "flags"],
    )
    def test_another_toolchain_builds_another_library(self, tmp_path: Path, change: dict[str, object]):
        fresh(tmp_path)
        fresh(tmp_path, **change)
        assert len(libraries(tmp_path)) == 2

    def test_another_source_is_another_library(self, tmp_path: Path):
        assert (fresh(tmp_path), fresh(tmp_path, SOURCE.replace("42", "43"))) == (42, 43)

    @pytest.mark.parametrize("damage", [b"", b"not a library"])
    @pytest.mark.parametrize("suffix", [".so", ".sha256"])
    def test_a_damaged_library_is_built_again(self, tmp_path: Path, suffix: str, damage: bytes):
        fresh(tmp_path)
        (library,) = libraries(tmp_path)
        damaged = library.with_suffix(suffix)
        damaged.unlink()  # this process has the old file open
        damaged.write_bytes(damage)
        assert fresh(tmp_path) == 42
        assert build._is_whole(library)

    def test_a_flipped_bit_is_noticed(self, tmp_path: Path):
        fresh(tmp_path)
        (library,) = libraries(tmp_path)
        content = bytearray(library.read_bytes())
        content[len(content) // 2] ^= 1
        library.unlink()  # this process has the old file open
        library.write_bytes(bytes(content))
        assert not build._is_whole(library)
        assert fresh(tmp_path) == 42

    def test_processes_that_build_at_once_do_not_disturb_each_other(self, tmp_path: Path):
        compiler = script(tmp_path / "slow", f'echo >> {tmp_path}/builds\nsleep 0.2\nexec c++ "$@"\n')
        children = []
        for _ in range(3):
            children.append(os.fork())
            if not children[-1]:
                os._exit(0 if fresh(tmp_path / "cache", compiler=(compiler,)) == 42 else 1)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        assert (tmp_path / "builds").read_text() == "\n"  # two of them waited for the third

    def test_nothing_is_left_of_a_build_that_failed(self, tmp_path: Path):
        with pytest.raises(BuildError):
            fresh(tmp_path, "int x = ;")
        assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_cannot_be_written(self, tmp_path: Path):
        tmp_path.chmod(0o500)
        with pytest.raises(BuildError, match=r"the library could not be written, .*: Permission denied"):
            fresh(tmp_path / "cache")

    def test_a_file_in_the_place_of_the_folder(self, tmp_path: Path):
        (tmp_path / "cache").write_text("")
        with pytest.raises(BuildError, match=r"the library could not be written, .*cache: File exists"):
            fresh(tmp_path / "cache")


class TestCompiler:
    def test_the_toolchain_names_compiler_flags_and_processor(self):
        toolchain = find_toolchain()
        assert " version " in toolchain.version
        assert "-march=native" in toolchain.to_json()["compiler_flags"]
        assert toolchain.processor

    def test_nothing_that_would_hide_nan_is_among_the_flags(self):
        assert not {"-ffast-math", "-Ofast", "-ffinite-math-only"} & set(build.FLAGS)

    def test_cxx_names_the_compiler_with_its_options(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        compiler = script(tmp_path / "my c++", 'exec c++ "$@"\n')
        monkeypatch.setenv("CXX", f"'{compiler}' -DX=1")
        assert find_toolchain().compiler == (compiler, "-DX=1")
        build._loaded.clear()
        source = 'extern "C" int answer() { return X; }\n'
        assert build.load_library(source, cache=tmp_path / "cache").answer() == 1

    def test_cxx_names_no_program(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(BuildError, match=r"\$CXX names 'no-such-compiler', and there is no such command"):
            find_toolchain()

    def test_no_compiler_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(BuildError, match=r"no C\+\+ compiler: none of c\+\+, g\+\+ and clang\+\+ is on the path"):
            find_toolchain()

    @pytest.mark.parametrize("name", ["g++", "clang++"])
    def test_the_next_compiler_is_taken_where_there_is_no_c(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        script(tmp_path / name, "echo 'a version 1' >&2\n")
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find_toolchain().compiler == (name,)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "echo 'x.cpp:1:1: note: well' >&2; echo 'x.cpp:3:1: error: no such thing' >&2; exit 1",
                "error: no such th",
            ),
            ("echo 'out of memory' >&2; exit 4", "failed: out of memory"),
            ("exit 3", "failed: exit code 3"),
            ("exit 0", "failed: it has written no library"),
            ("echo $(yes error | head -c 100000) >&2; exit 1", "failed: error error"),
        ],
    )
    def test_a_failing_compiler_is_one_line(self, text: str, message: str, tmp_path: Path):
        compiler = script(tmp_path / "failing", text + "\n")
        with pytest.raises(BuildError, match=message) as refused:
            fresh(tmp_path / "cache", compiler=(compiler,))
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 500
        assert isinstance(refused.value, UserError)

    def test_a_compiler_that_hangs_is_stopped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(build, "SECONDS", 0.2)
        compiler = script(tmp_path / "hanging", "exec sleep 60\n")
        with pytest.raises(BuildError, match=r"did not finish the build within 0\.2 s"):
            fresh(tmp_path / "cache", compiler=(compiler,))

    def test_a_library_for_another_machine(self, tmp_path: Path):
        compiler = script(tmp_path / "other", 'while [ "$1" != -o ]; do shift; done\necho nonsense > "$2"\n')
        with pytest.raises(BuildError, match=r"the library could not be loaded: .*invalid ELF|file too short"):
            fresh(tmp_path / "cache", compiler=(compiler,))
