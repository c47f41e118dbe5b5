"""What a gate found, as CI servers read it."""

import re
import urllib.parse

import pytest
from junitparser import Error, Failure, JUnitXml

from onnxprune.validate.gate import CheckResult, GateResult
from onnxprune.validate.gate_report import annotations, junit_xml, markdown, summary

HOSTILE = 'a<b> & "c" | `d` ::error::\x00\x1b \ud800 100 %,\n]]> 🦀'
RESULT = GateResult(
    f"pruned {HOSTILE}.onnx",
    "ci/policy: a,b.toml",
    [
        CheckResult("sparsity.min", "pass", "80 %", 0.8, 0.8, 0.25),
        CheckResult("size.max_bytes", "fail", HOSTILE, 12, 10, 0.5),
        CheckResult("data", "error", "no such file\n  where: x", exit_code=4),
        CheckResult("accuracy.min", "skipped", "not checked: no data", None, 0.9),
        CheckResult("accuracy.max_drop", "skipped", "not checked: no data", None, 0.01),
    ],
)
PASSED = GateResult("pruned.onnx", "policy.toml", [CheckResult("size.max_bytes", "pass", "ok")])


def test_a_junit_parser_reads_it() -> None:
    (suite,) = list(JUnitXml.fromstring(junit_xml(RESULT).encode()))
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (5, 1, 3, 0)
    assert suite.time == pytest.approx(0.75)
    assert [p.name for p in suite.properties()] == ["model", "policy"]
    cases = {case.name: case for case in suite}
    assert list(cases) == [check.name for check in RESULT.checks]
    assert cases["sparsity.min"].is_passed
    assert cases["sparsity.min"].classname == "onnxprune.sparsity"
    (failure,) = cases["size.max_bytes"].result
    assert isinstance(failure, Failure)
    assert failure.text is not None
    assert "\nrequired: 10\nmeasured: 12" in failure.text
    assert '"c" | `d` ::error::�� � 100 %,\n]]> 🦀' in failure.text
    (error,) = cases["data"].result
    assert isinstance(error, Error)
    assert error.message == "no such file"


def test_what_was_skipped_is_an_error_for_a_ci_server() -> None:
    (suite,) = list(JUnitXml.fromstring(junit_xml(RESULT).encode()))
    (case,) = [case for case in suite if case.name == "accuracy.min"]
    assert not case.is_skipped
    (problem,) = case.result
    assert isinstance(problem, Error)
    assert problem.type == "skipped"


def test_markdown_is_one_table_whatever_the_texts_hold() -> None:
    text = markdown(RESULT)
    text.encode()
    lines = text.splitlines()
    assert lines[0].startswith("### onnxprune check: ")
    assert lines[0].endswith(" did not pass")
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(RESULT.checks)
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 6
        assert "<b>" not in row
    assert "| ❌ | `size.max_bytes` | 10 | 12 | fail: a&lt;b&gt;" in text
    assert "5 checks: 1 passed, 1 failed, 1 ended in errors, 2 skipped." in text
    assert markdown(PASSED).splitlines()[0] == "### onnxprune check: pruned.onnx passed"


def parse(command: str) -> tuple[str, dict[str, str], str]:
    """A workflow command as GitHub's runner reads it."""
    match = re.fullmatch(r"::(\w+) (.*?)::(.*)", command)
    assert match is not None, command
    properties = dict(part.split("=", 1) for part in match[2].split(","))
    decoded = {key: urllib.parse.unquote(value) for key, value in properties.items()}
    return match[1], decoded, urllib.parse.unquote(match[3])


def test_annotations_are_single_workflow_commands() -> None:
    parsed = [parse(line) for line in annotations(RESULT)]
    assert [kind for kind, _, _ in parsed] == ["error"] * 3
    assert {properties["file"] for _, properties, _ in parsed} == {"ci/policy: a,b.toml"}
    assert parsed[0][1]["title"] == "onnxprune check: size.max_bytes"
    assert "100 %,\n]]> 🦀" in parsed[0][2]
    assert parsed[2][2].splitlines() == [
        "accuracy.min: not checked: no data",
        "accuracy.max_drop: not checked: no data",
    ]
    (line,) = annotations(PASSED)
    assert parse(line) == (
        "notice",
        {"file": "policy.toml", "title": "onnxprune check"},
        "pruned.onnx passed. 1 check: 1 passed.",
    )


@pytest.mark.parametrize(
    ("checks", "passed", "code"),
    [
        ([], False, 1),
        ([("pass", 0)], True, 0),
        ([("pass", 0), ("skipped", 0)], False, 1),
        ([("pass", 0), ("fail", 0)], False, 1),
        ([("error", 4), ("skipped", 0)], False, 4),
        ([("error", 3), ("error", 4)], False, 3),
        ([("error", 4), ("fail", 0)], False, 1),
    ],
)
def test_exit_codes(checks: list[tuple[str, int]], passed: bool, code: int) -> None:
    results = [CheckResult("a", status, "", exit_code=exit_code) for status, exit_code in checks]  # type: ignore[arg-type]
    result = GateResult("m", "p", results)
    assert (result.passed, result.exit_code) == (passed, code)


def test_json_has_no_value_that_json_lacks() -> None:
    check = CheckResult("a", "fail", "", {"x": float("nan"), "y": [1.5]}, float("inf"))
    assert check.to_json()["measured"] == {"x": None, "y": [1.5]}
    assert summary(GateResult("m", "p", [])) == "0 checks: nothing."
