"""The report of the gradient checks: what passed, what failed and why, what was skipped."""

from __future__ import annotations

import dataclasses
import html
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from deltaprop.errors import counted


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
        """Return a table for a rich console: what failed, what passed, and what was skipped and why."""
        from rich.table import Table
        from rich.text import Text  # imported here: the package should import fast

        styles = {"error": "bold red", "warning": "yellow", "passed": "green", "skipped": "dim"}
        table = Table(title=Text(f"gradients of {self.subject}"), title_justify="left")
        for column in ("result", "check", "detail"):
            table.add_column(column, overflow="fold")
        for result, names, detail in self._rows():
            which, text = names, detail
            if result in ("passed", "skipped"):
                which, text = counted(names.count(",") + 1, "check"), f"{names}: {detail}" if detail else names
            table.add_row(Text(result, style=styles[result]), Text(which), Text(text))
        return table

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield result, checks and detail: each failure, and the others together if they have the same detail."""
        for check in [*self.errors, *self.warnings]:
            yield check.severity, check.name, check.detail
        for outcome in ("passed", "skipped"):
            groups: dict[str, list[str]] = {}
            for check in self.checks:
                if check.outcome == outcome:
                    groups.setdefault(check.detail, []).append(check.name)
            for detail, names in groups.items():
                yield outcome, ", ".join(names), detail

    def __repr__(self) -> str:
        """Return the headline of the summary."""
        return f"<GradientReport of {self._headline()}>"

    def __str__(self) -> str:
        """Return the headline and the table as text, without colour."""
        from rich.console import Console

        file = io.StringIO()
        Console(file=file, width=110, color_system=None).print(self._headline(), self.rich(), sep="\n", highlight=False)
        return file.getvalue()

    def _repr_html_(self) -> str:
        """Return the headline and the table for a notebook, light or dark: text has the notebook's own colour."""
        colours = {"error": "#d1242f", "warning": "#bf8700", "passed": "#2da44e", "skipped": "#8c959f"}
        style = "text-align: left; vertical-align: top; white-space: normal; overflow-wrap: break-word"
        rows = "".join(
            f'<tr style="background: none"><td style="border-left: 4px solid {colours[result]}; {style}">{result}</td>'
            f'<td style="{style}"><b>{html.escape(names)}</b>{html.escape(f": {detail}" if detail else "")}</td></tr>'
            for result, names, detail in self._rows()
        )
        head = html.escape(self._headline())
        return f'<div style="overflow-x: auto"><p><b>{head}</b></p><table><tbody>{rows}</tbody></table></div>'

    def _headline(self) -> str:
        failed = [
            f"{counted(len(checks), kind)}: {', '.join(check.name for check in checks)}"
            for kind, checks in (("error", self.errors), ("warning", self.warnings))
            if checks
        ]
        passed = sum(check.outcome == "passed" for check in self.checks)
        ok = ["ok"] if self.ok else []
        return f"{self.subject}: {'; '.join([*ok, *failed, f'{passed} passed'])}"

    def summary(self) -> str:
        """Return a headline with the function and what failed, and a line for each failure and for what was skipped."""
        lines = [self._headline()]
        for result, names, detail in self._rows():
            if result != "passed" or detail:
                lines.append(f"  {result}: {names}: {detail}")
        return "\n".join(lines)
