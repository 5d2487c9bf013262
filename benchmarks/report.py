"""Tables for the terminal and for docs/benchmarks.md, which has a section for each machine."""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.table import Table as RichTable

from deltaprop.training.devices import physical_cores

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


@dataclass
class Table:
    """A table with a title and notes.

    Attributes:
        title: The title.
        columns: The column names; the first column holds names, the others numbers.
        rows: The cells as text.
        notes: Sentences below the table.
    """

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rich(self) -> RichTable:
        """Return the table for the terminal."""
        table = RichTable(title=self.title, title_justify="left", caption="\n".join(self.notes), caption_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=not number)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table as Markdown."""
        ruler = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [f"### {self.title}", "", *(f"| {' | '.join(row)} |" for row in (self.columns, ruler, *self.rows))]
        return "\n".join([*lines, *(line for note in self.notes for line in ("", note)), ""])


def machine() -> str:
    """Return the processor and its number of cores."""
    return f"{_processor()}, {physical_cores()} cores"


def versions() -> str:
    """Return the versions of Python and the packages in one line; deltaprop's is its commit, if it is a checkout."""
    git = ["git", "-C", str(PAGE.parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = version("deltaprop")
    packages = [f"deltaprop {commit}"]
    for name in ("torch", "numpy", "jax", "scikit-learn"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"no {name}")
    return f"Python {platform.python_version()}, {', '.join(packages)}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
    return re.sub(r"\((R|TM)\)", "", name)


def write(tables: list[Table], command: str, page: Path = PAGE) -> None:
    """Write tables into this machine's section of the page; each replaces the one with its title.

    Raises:
        OSError: If the page cannot be read or written.
    """
    head, *sections = re.split(r"(?m)^(?=## )", page.read_text(encoding="utf-8"))
    title = f"## {machine()}\n"
    own_sections = [section for section in sections if section.startswith(title)]
    own = re.split(r"(?m)^(?=### )", own_sections[0])[1:] if own_sections else []
    parts = {part.splitlines()[0]: part.strip() for part in own}
    for table in tables:
        table.notes.append(f"`{command}`: {versions()}.")
        parts[f"### {table.title}"] = table.markdown().strip()
    mine = "\n\n".join([title.strip(), *parts.values()])
    others = [section.strip() for section in sections if not section.startswith(title)]
    page.write_text("\n\n".join([head.strip(), *others, mine]) + "\n", encoding="utf-8")
