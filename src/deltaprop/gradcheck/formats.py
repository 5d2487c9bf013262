"""Reports of gradient checks for other programs: JUnit's XML, and annotations of GitHub's actions."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from deltaprop.gradcheck.report import GradientReport

NOT_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def to_junit(reports: Sequence[GradientReport]) -> bytes:
    """Return the reports as JUnit's XML: a suite for each function, a case for each check; a warning is not a failure.

    Source:
        The elements that Jenkins, GitLab and pytest have in common.
    """
    root = ET.Element("testsuites", name="gradients")
    for report in reports:
        counts = {
            "tests": len(report.checks),
            "failures": len(report.errors),
            "skipped": sum(check.outcome == "skipped" for check in report.checks),
        }
        attributes = {name: str(count) for name, count in counts.items()}
        suite = ET.SubElement(root, "testsuite", {"name": _plain(report.subject), "errors": "0", **attributes})
        for check in report.checks:
            case = ET.SubElement(suite, "testcase", classname=_plain(report.subject), name=check.name)
            detail = _plain(check.detail)
            if check in report.errors:
                ET.SubElement(case, "failure", message=detail).text = detail
            elif check.outcome == "skipped":
                ET.SubElement(case, "skipped", message=detail)
            elif detail:
                ET.SubElement(case, "system-out").text = f"warning: {detail}" if check in report.warnings else detail
    ET.indent(root)
    xml: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return xml + b"\n"


def _plain(text: str) -> str:
    """Return a text without the characters that XML cannot hold."""
    return NOT_XML.sub("\ufffd", text)


def to_annotations(report: GradientReport, fn: Any) -> Iterator[str]:
    """Yield what makes GitHub's actions show each error and warning beside the line of the backward that it is about.

    Source:
        GitHub, "Workflow commands for GitHub Actions": ``::error file=…,line=…,title=…::message``.
    """
    place: dict[str, str | int] = {}
    with contextlib.suppress(TypeError, OSError):  # not of a C function
        own = [vars(cls)["backward"] for cls in getattr(fn, "__mro__", ()) if "backward" in vars(cls)]
        code = own[0].__func__ if own and isinstance(own[0], staticmethod) else fn
        code = fn if str(getattr(code, "__module__", "")).startswith("torch.") else inspect.unwrap(code)
        path = Path(inspect.getsourcefile(code) or "")
        with contextlib.suppress(ValueError):
            path = path.resolve().relative_to(Path.cwd())
        place = {"file": str(path), "line": inspect.getsourcelines(code)[1]}
    for check in [*report.errors, *report.warnings]:
        properties = {**place, "title": f"{report.subject}: {check.name}"}
        words = ",".join(f"{name}={_escaped(str(value), property=True)}" for name, value in properties.items())
        yield f"::{check.severity} {words}::{_escaped(check.detail)}"


def _escaped(text: str, property: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if property else text
