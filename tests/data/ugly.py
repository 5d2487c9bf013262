"""What the tests of ugly files share: how a case is written down, put into a folder, and refused or taken."""

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
LONGEST = 1000  # characters that a line on the terminal may have, whatever is in the cell that it tells of
SMALL = ["--hidden", "4", "--epochs", "1", "--log-every", "0", "--device", "cpu"]

# 40 rows of two columns of numbers and a class: what a case appends is row 41, its line is 42.
N = 40
CLASSES = ["yes" if i % 3 else "no" for i in range(N)]
ROWS = "".join(f"{i},{i * i % 7},{CLASSES[i]}\n" for i in range(N))
GOOD = "a,b,y\n" + ROWS
NAMES = "".join(f"{i},{'pqr'[i % 3]},{CLASSES[i]}\n" for i in range(N))  # b is of names here


@dataclass(frozen=True)
class Case:
    """An ugly file: its name, what is in it, and what is said of it.

    Attributes:
        name: Of the case.
        content: Of the file; a function writes it, a string is UTF-8.
        says: A regex of the whole line that refuses it, or of a part of what is said where it is taken.
        flags: Beside ``--data``.
        file: Its name; ``t.csv`` unless the case is about it.
        beside: Other files.
    """

    name: str
    content: Content
    says: str
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


def table(case: str, content: Content, says: str, *flags: str, test: Content | None = None) -> Case:
    """Return a case of a CSV ``t.csv``, with ``u.csv`` to test on where there is one."""
    if test is None:
        return Case(case, content, says, flags)
    return Case(case, content, says, ("--test", "u.csv", *flags), beside={"u.csv": test})


def ids(cases: list[Case]) -> list[Any]:
    """Return cases as parameters, each under its name."""
    return [pytest.param(case, id=case.name) for case in cases]


def columns(**values: Any) -> Callable[[Path], object]:
    """Return a function that writes a Parquet file of columns, y of classes among them unless it is given."""
    rows = len(next(iter(values.values()))) if values else N
    full = values if "y" in values else {**values, "y": [CLASSES[i % N] for i in range(rows)]}
    return lambda path: parquet.write_table(pa.table(full), path)


def parts(**files: Content) -> Callable[[Path], object]:
    """Return a function that makes a folder of files, ``p1`` becoming p1.parquet."""

    def write(folder: Path) -> None:
        folder.mkdir()
        for name, content in files.items():
            Case("", content, "", file=f"{name}.parquet").write(folder)

    return write


def typed(name: str, values: object, says: str, *flags: str) -> Case:
    """Return a case of a Parquet file with a column ``c`` beside a and y."""
    return Case(f"Parquet of {name}", columns(a=range(N), c=values), says, flags, "t.parquet")


def npz(**arrays: Any) -> Callable[[Path], object]:
    """Return a function that writes arrays as numpy does."""
    return lambda path: np.savez(path, **arrays)


def cut(write: Callable[[Path], object], share: float = 0.5) -> Callable[[Path], object]:
    """Return a function that leaves a share of a file."""

    def write_part(path: Path) -> None:
        write(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return write_part


def everything(folder: Path) -> dict[str, bytes | None]:
    """Return all that is in a folder, the folders in it with None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


class Command:
    """``deltaprop train`` in a folder of its own, with a cache of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.cache, self.capsys = folder / "work", folder / "cache", capsys
        for made in (self.folder, self.folder / "runs", self.cache):
            made.mkdir()
        monkeypatch.chdir(self.folder)
        monkeypatch.setenv("XDG_CACHE_HOME", str(self.cache))

    def __call__(self, case: Case) -> tuple[int, str, str]:
        """Return the exit code, and what was written to stdout and stderr."""
        code = main(["train", "--data", case.file, *SMALL, *case.flags])
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def refuses(self, case: Case) -> str:
        """Check that a case is refused as the user's mistakes are; return the line."""
        case.write(self.folder)
        before = everything(self.folder)
        code, out, err = self(case)
        assert (code, out) == (2, ""), err
        assert err.count("\n") == 1, err
        assert re.fullmatch(f"error: {case.says}\n", err), err
        assert len(err) < LONGEST
        assert everything(self.folder) == before
        assert everything(self.cache) in ({}, {"deltaprop": None})  # the folder of caches itself may be there
        return err

    def takes(self, case: Case) -> str:
        """Check that a case is trained on; return what was said, warnings first."""
        case.write(self.folder)
        code, out, err = self(case)
        assert code == 0, err
        assert re.search(case.says, err + out), err + out
        return err + out
