"""The result of a gate for machines and people: JUnit XML, Markdown, GitHub annotations."""

import json
import re
from typing import Any
from xml.etree import ElementTree

from onnxprune.validate.gate import CheckResult, GateResult
from onnxprune.validate.subject import counted

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARKS = {"pass": "✅", "fail": "❌", "error": "⛔", "skipped": "⛔"}
_LONGEST_CELL = 2000


def junit_xml(result: GateResult) -> str:
    """A JUnit report with one test case a check.

    A skipped check is an error here, not `<skipped>`, which CI servers show as no problem.
    """
    counts = result.counts()
    totals = {
        "tests": str(len(result.checks)),
        "failures": str(counts["fail"]),
        "errors": str(counts["error"] + counts["skipped"]),
        "time": f"{sum(check.seconds for check in result.checks):.3f}",
    }
    root = ElementTree.Element("testsuites", {"name": "onnxprune check", **totals})
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": _clean(result.model), **totals, "skipped": "0"}
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (("model", result.model), ("policy", result.policy)):
        ElementTree.SubElement(properties, "property", {"name": name, "value": _clean(value)})
    for check in result.checks:
        _add_case(suite, check)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _add_case(suite: ElementTree.Element, check: CheckResult) -> None:
    table = check.name.partition(".")[0]
    case = ElementTree.SubElement(
        suite,
        "testcase",
        {
            "classname": f"onnxprune.{table}",
            "name": check.name,
            "time": f"{check.seconds:.3f}",
        },
    )
    if check.status == "pass":
        ElementTree.SubElement(case, "system-out").text = _clean(check.message)
        return
    kind = "failure" if check.status == "fail" else "error"
    problem = ElementTree.SubElement(
        case, kind, {"type": check.status, "message": _clean(check.message.partition("\n")[0])}
    )
    problem.text = _clean(
        f"{check.message}\nrequired: {value_text(check.required)}\n"
        f"measured: {value_text(check.measured)}"
    )


def _clean(text: str) -> str:
    """Text without the characters that XML cannot hold, not even escaped, nor UTF-8."""
    return _NOT_XML.sub("�", text)


def markdown(result: GateResult) -> str:
    """A table for pull requests and job summaries (GitHub's and GitLab's Markdown)."""
    title = "passed" if result.passed else "did not pass"
    lines = [
        f"### onnxprune check: {_cell(result.model)} {title}",
        "",
        f"Policy: {_cell(result.policy)}. {summary(result)}",
        "",
        "| | check | required | measured | result |",
        "| --- | --- | --- | --- | --- |",
    ]
    for check in result.checks:
        cells = (
            _MARKS[check.status],
            f"`{check.name}`",
            _cell(value_text(check.required)),
            _cell(value_text(check.measured)),
            f"{check.status}: {_cell(check.message)}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    """Text that Markdown and HTML leave as it is, in one line."""
    text = _clean(text if len(text) <= _LONGEST_CELL else text[:_LONGEST_CELL] + " …")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]#|~@!])", r"\\\1", text)
    return "<br>".join(part.strip() for part in text.splitlines())


def annotations(result: GateResult) -> list[str]:
    """GitHub workflow commands: an error for each check that did not pass, or a notice.

    GitHub shows ten errors a step, so skipped checks share one.
    """
    policy = _property(result.policy)
    if result.passed:
        text = _data(f"{result.model} passed. {summary(result)}")
        return [f"::notice file={policy},title=onnxprune check::{text}"]
    problems = [
        (check.name, f"{check.status}: {check.message}")
        for check in result.checks
        if check.status in ("fail", "error")
    ]
    skipped = [check for check in result.checks if check.status == "skipped"]
    if skipped:
        reasons = "\n".join(f"{check.name}: {check.message}" for check in skipped)
        problems.append(("skipped checks", reasons))
    return [
        f"::error file={policy},title={_property(f'onnxprune check: {name}')}::{_data(text)}"
        for name, text in problems
    ]


def _data(text: str) -> str:
    """Text for a workflow command; a line break would end it."""
    return _clean(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def summary(result: GateResult) -> str:
    """`9 checks: 8 passed, 1 failed.`"""
    words = {"pass": "passed", "fail": "failed", "error": "ended in errors", "skipped": "skipped"}
    counts = [f"{count} {words[status]}" for status, count in result.counts().items() if count]
    return f"{counted(len(result.checks), 'check')}: {', '.join(counts) or 'nothing'}."


def value_text(value: Any) -> str:
    """A demand or a measurement, in short."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return value
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{len(value)} values"
