"""Shared by the tests of malformed and unusual data files: cases, and a command that accepts or refuses them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from deltaprop.cli import main

Content = str | bytes | Callable[[Path], object]
LONGEST = 1000  # characters of an error line at most, whatever is in the cell that it quotes
SMALL = ["--hidden", "4", "--epochs", "1", "--log-every", "0", "--device", "cpu"]

# 40 rows of two columns of numbers and a class: a row that a case appends is row 41, on line 42. The first column is
# from 2, not from 0 or 1 as row numbers are.
N = 40
A = range(2, N + 2)
CLASSES = ["yes" if i % 3 else "no" for i in range(N)]
ROWS = "".join(f"{A[i]},{i * i % 7},{CLASSES[i]}\n" for i in range(N))
GOOD = "a,b,y\n" + ROWS
NAMES = "".join(f"{A[i]},{'pqr'[i % 3]},{CLASSES[i]}\n" for i in range(N))  # here b holds categories


@dataclass(frozen=True)
class Case:
    """A data file and the expected output of ``deltaprop train``.

    Attributes:
        name: The name of the case.
        content: The content of the file: bytes, text for UTF-8, or a function that writes the file.
        expected: A regex of the whole error line if the file is refused, else of a part of the output.
        flags: Flags in addition to ``--data``.
        file: The file's name.
        beside: Other files: name → content.
    """

    name: str
    content: Content
    expected: str
    flags: tuple[str, ...] = ()
    file: str = "t.csv"
    beside: Mapping[str, Content] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Put the files into a folder."""
        for name, content in {self.file: self.content, **self.beside}.items():
            if callable(content):
                content(folder / name)
            else:
                (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def table(case: str, content: Content, expected: str, *flags: str, test: Content | None = None) -> Case:
    """Return a case of a CSV ``t.csv``, with ``u.csv`` as test data if given."""
    if test is None:
        return Case(case, content, expected, flags)
    return Case(case, content, expected, ("--test", "u.csv", *flags), beside={"u.csv": test})


def ids(cases: list[Case]) -> list[Any]:
    """Return the cases as parameters with their names as ids."""
    return [pytest.param(case, id=case.name) for case in cases]


def columns(**values: Any) -> Callable[[Path], object]:
    """Return a function that writes a Parquet file of these columns, and of a column y of classes by default."""
    rows = len(next(iter(values.values()))) if values else N
    full = values if "y" in values else {**values, "y": [CLASSES[i % N] for i in range(rows)]}
    return lambda path: parquet.write_table(pa.table(full), path)


def parts(**files: Content) -> Callable[[Path], object]:
    """Return a function that makes a folder of files: ``p1`` becomes p1.parquet."""

    def write(folder: Path) -> None:
        folder.mkdir()
        for name, content in files.items():
            Case("", content, "", file=f"{name}.parquet").write(folder)

    return write


def typed(name: str, values: object, expected: str, *flags: str) -> Case:
    """Return a case of a Parquet file with columns a, c and y, where c has these values."""
    return Case(f"Parquet of {name}", columns(a=A, c=values), expected, flags, "t.parquet")


def npz(**arrays: Any) -> Callable[[Path], object]:
    """Return a function that writes arrays with ``numpy.savez``."""
    return lambda path: np.savez(path, **arrays)


def cut(write: Callable[[Path], object], share: float = 0.5) -> Callable[[Path], object]:
    """Return a function that writes only the first share of a file."""

    def write_part(path: Path) -> None:
        write(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return write_part


def everything(folder: Path) -> dict[str, bytes | None]:
    """Return relative path → content of everything in a folder; None for folders."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


class Command:
    """``deltaprop train`` in a separate folder with a separate cache."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.cache, self.capsys = folder / "work", folder / "cache", capsys
        for made in (self.folder, self.folder / "runs", self.cache):
            made.mkdir()
        monkeypatch.chdir(self.folder)
        monkeypatch.setenv("XDG_CACHE_HOME", str(self.cache))

    def __call__(self, case: Case) -> tuple[int, str, str]:
        """Return the exit code, and what was written to stdout and stderr."""
        code = main(["train", "--data", case.file, *SMALL, *case.flags])
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err

    def refuses(self, case: Case) -> str:
        """Check that a case is refused in one line with exit code 2 and nothing written; return the line."""
        case.write(self.folder)
        before = everything(self.folder)
        code, out, err = self(case)
        assert (code, out) == (2, ""), err
        assert err.count("\n") == 1, err
        assert re.fullmatch(f"error: {case.expected}\n", err), err
        assert len(err) < LONGEST
        assert everything(self.folder) == before
        assert everything(self.cache) in ({}, {"deltaprop": None})  # the empty cache folder may exist
        return err

    def accepts(self, case: Case) -> str:
        """Check that a case is trained on; return the output, warnings first."""
        case.write(self.folder)
        code, out, err = self(case)
        assert code == 0, err
        assert re.search(case.expected, err + out), err + out
        return err + out
