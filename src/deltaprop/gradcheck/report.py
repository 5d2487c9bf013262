"""What a check of gradients found: a list of checks, each passed, failed or skipped, and told in plain words."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Check:
    """One question about a backward pass, and its answer.

    Attributes:
        name: Of the question, such as ``"values"``; what ``skip=`` takes.
        outcome: What came of it.
        severity: What it is where it failed: an ``"error"``, or a ``"warning"`` for what can be meant or harmless.
        detail: What was expected, what came, where, and the likely cause; why it was skipped; what was tried.
    """

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    severity: Literal["error", "warning"] = "error"
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether it did not fail; a skipped check says nothing, so ask ``outcome`` for that."""
        return self.outcome != "failed"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"name": self.name, "outcome": self.outcome, "severity": self.severity, "detail": self.detail}


@dataclass(frozen=True, repr=False)
class GradientReport:
    """All checks of one function.

    Attributes:
        subject: Its name.
        checks: In the order in which they were made.
    """

    subject: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed but with a warning."""
        return not self.errors

    @property
    def errors(self) -> list[Check]:
        """The checks that failed, warnings left out."""
        return [check for check in self.checks if not check.ok and check.severity == "error"]

    @property
    def warnings(self) -> list[Check]:
        """The checks that failed with a warning."""
        return [check for check in self.checks if not check.ok and check.severity == "warning"]

    def __iter__(self) -> Iterator[Check]:
        """Go through the checks."""
        return iter(self.checks)

    def __getitem__(self, name: str) -> Check:
        """Return the check of a name.

        Raises:
            KeyError: If there is none.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"subject": self.subject, "ok": self.ok, "checks": [check.to_json() for check in self.checks]}

    def rich(self) -> Any:
        """Return it as a table for a rich console."""
        from rich.table import Table
        from rich.text import Text  # a report is printed far less often than the package is imported

        marks = {"passed": "[green]passed[/]", "skipped": "[dim]skipped[/]"}
        table = Table(title=Text(f"gradients of {self.subject}"), title_justify="left")
        for column in ("check", "", "what was found"):
            table.add_column(column, overflow="fold")
        for check in self.checks:
            failed = "[bold red]ERROR[/]" if check.severity == "error" else "[yellow]warning[/]"
            table.add_row(check.name, marks.get(check.outcome, failed), Text(check.detail))
        return table

    def __repr__(self) -> str:
        """Return the name and the summary, in one line."""
        return f"<GradientReport of {self.subject}: {self.summary()}>"

    def __str__(self) -> str:
        """Return the table as text, without colour."""
        from rich.console import Console

        file = io.StringIO()
        Console(file=file, width=110, color_system=None).print(self.rich(), self.summary(), highlight=False)
        return file.getvalue()

    def summary(self) -> str:
        """Return the verdict in one line."""
        counts = {outcome: sum(c.outcome == outcome for c in self.checks) for outcome in ("passed", "skipped")}
        verdict = "ok" if self.ok else "NOT OK"
        return (
            f"{verdict}: {_count(len(self.errors), 'error')}, {_count(len(self.warnings), 'warning')}, "
            f"{counts['passed']} passed, {counts['skipped']} skipped"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
