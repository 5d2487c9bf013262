"""The report of the gradient checks: what passed, what failed and why, what was skipped."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Check:
    """The result of one check of a backward pass.

    Attributes:
        name: The check, such as ``"values"``; what ``skip=`` takes.
        outcome: ``"passed"``, ``"failed"`` or ``"skipped"``.
        severity: Of a failed check ``"error"``, or ``"warning"`` for what may be intended or harmless.
        detail: What was expected, what was computed, where, and the likely cause; why it was skipped.
    """

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    severity: Literal["error", "warning"] = "error"
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether it did not fail; ``outcome`` tells a passed check from a skipped one."""
        return self.outcome != "failed"

    def to_json(self) -> dict[str, Any]:
        """Return it as a dictionary for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, repr=False)
class GradientReport:
    """The checks of one function.

    Attributes:
        subject: Name of the function.
        checks: The checks, in the order in which they ran.
    """

    subject: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no errors; warnings are allowed."""
        return not self.errors

    @property
    def errors(self) -> list[Check]:
        """The checks that failed with an error."""
        return [check for check in self.checks if not check.ok and check.severity == "error"]

    @property
    def warnings(self) -> list[Check]:
        """The checks that failed with a warning."""
        return [check for check in self.checks if not check.ok and check.severity == "warning"]

    def __iter__(self) -> Iterator[Check]:
        """Iterate over the checks."""
        return iter(self.checks)

    def __getitem__(self, name: str) -> Check:
        """Return a check by its name; raise a KeyError if there is no such check."""
        return {check.name: check for check in self.checks}[name]

    def to_json(self) -> dict[str, Any]:
        """Return it as a dictionary for JSON."""
        return {"subject": self.subject, "ok": self.ok, "checks": [check.to_json() for check in self.checks]}

    def rich(self) -> Any:
        """Return a table for a rich console."""
        from rich.table import Table
        from rich.text import Text  # imported here: the package should import fast

        marks = {"passed": "[green]passed[/]", "skipped": "[dim]skipped[/]"}
        table = Table(title=Text(f"gradients of {self.subject}"), title_justify="left")
        for column in ("check", "", "detail"):
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
        """Return the counts of errors, warnings, passed and skipped checks in one line."""
        outcomes = Counter(check.outcome for check in self.checks)
        errors, warnings = len(self.errors), len(self.warnings)
        return (
            f"{'ok' if self.ok else 'NOT OK'}: {errors} error{'' if errors == 1 else 's'}, "
            f"{warnings} warning{'' if warnings == 1 else 's'}, "
            f"{outcomes['passed']} passed, {outcomes['skipped']} skipped"
        )
