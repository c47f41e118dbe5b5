"""`onnxprune check` as CI calls it."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from junitparser import JUnitXml

from onnxprune import Recipe, prune
from tests.conftest import labelled_arrays, small_classifier

from .conftest import Command

RULES = """
[sparsity]
min = 0.8
[metadata]
true_to_file = true
[signature]
same_as_baseline = true
[outputs]
finite = true
[accuracy]
min = 0.01
[agreement]
min = 0.0
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(RULES)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `prune` makes of the classifier."""
    folder = tmp_path_factory.mktemp("pruned")
    onnx.save(small_classifier(), folder / "model.onnx")
    np.savez(folder / "train.npz", **labelled_arrays(160))
    tables = {
        "data": {"train": str(folder / "train.npz")},
        "finetune": {"epochs": 1.0, "evaluations": 1, "device": "cpu", "threads": 1},
        "validate": {"latency": False, "threads": 1},
    }
    recipe = Recipe.from_dict(tables)
    prune(folder / "model.onnx", folder / "pruned.onnx", recipe)
    return folder / "pruned.onnx"


@pytest.fixture
def pruned(written: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copy(written, tmp_path / "pruned.onnx"))


@pytest.fixture
def line(classifier: Path, pruned: Path, policy: Path, evaluation_data: Path) -> list[object]:
    """A command line that passes."""
    inputs = ["--baseline", classifier, "--data", evaluation_data, "--threads", 1]
    return ["check", pruned, "--policy", policy, *inputs]


def statuses(result: Any) -> dict[str, str]:
    return {check["name"]: check["status"] for check in result["checks"]}


def test_a_pruned_model_passes(command: Command, line: list[object]) -> None:
    outcome = command(*line, "--json").expect(0)
    assert outcome.err == ""
    result = outcome.json
    assert result["passed"] is True
    assert set(result["checks"][0]) >= {"name", "status", "message", "measured", "required"}
    assert set(statuses(result).values()) == {"pass"}
    assert len(statuses(result)) == 6
    text = command(*line).expect(0).out
    assert "passed. 6 checks: 6 passed." in text
    assert "sparsity.min" in text


def test_reports_are_written(
    command: Command, line: list[object], pruned: Path, policy: Path, tmp_path: Path
) -> None:
    policy.write_text(RULES.replace("0.8", "0.9"))
    junit, summary = tmp_path / "junit.xml", tmp_path / "summary.md"
    reports = ["--junit", junit, "--markdown", summary]
    outcome = command(*line, *reports, "--annotations", "--json").expect(1)
    assert statuses(outcome.json)["sparsity.min"] == "fail"
    assert outcome.err.startswith(f"::error file={policy},title=onnxprune check%3A sparsity.min::")
    (suite,) = list(JUnitXml.fromfile(str(junit)))
    assert (suite.tests, suite.failures, suite.errors) == (6, 1, 0)
    assert "| ❌ | `sparsity.min` | 0.9 |" in summary.read_text(encoding="utf-8")


def test_annotations_appear_on_github(
    command: Command, line: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert "::notice" not in command(*line).expect(0).out
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert "\n::notice file=" in command(*line).expect(0).out
    assert "::notice" not in command(*line, "--no-annotations").expect(0).out
    outcome = command(*line, "--json").expect(0)
    assert outcome.json["passed"]
    assert outcome.err.startswith("::notice")


@pytest.mark.parametrize(
    ("broken", "code", "name"),
    [
        ("policy", 2, "policy"),
        ("recipe", 2, "recipe"),
        ("model", 3, "model"),
        ("baseline", 3, "baseline"),
        ("data", 4, "data"),
    ],
)
def test_what_cannot_be_read_ends_in_a_report_and_its_exit_code(
    command: Command, line: list[object], tmp_path: Path, broken: str, code: int, name: str
) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"\x80\x81 no file of any kind")
    if broken == "model":
        line[1] = bad
    else:
        line += [f"--{broken}", bad]
    junit = tmp_path / "junit.xml"
    outcome = command(*line, "--json", "--junit", junit).expect(code)
    assert outcome.json["passed"] is False
    assert statuses(outcome.json)[name] == "error"
    assert outcome.err.startswith("error: ")
    (suite,) = list(JUnitXml.fromfile(str(junit)))
    assert suite.errors >= 1
    assert "DID NOT PASS" in command(*line).expect(code).out


@pytest.mark.parametrize("text", ["", "[sparsity]\nmni = 0.8\n", "[latency]\nthreads = 1\n"])
def test_a_policy_without_sense_is_2(
    command: Command, line: list[object], policy: Path, text: str
) -> None:
    policy.write_text(text)
    outcome = command(*line, "--json").expect(2)
    assert statuses(outcome.json) == {"policy": "error"}
    assert outcome.json["passed"] is False


def test_latency_without_a_baseline_is_no_pass(
    command: Command, pruned: Path, policy: Path
) -> None:
    policy.write_text("[latency]\nmin_speedup = 0.1\n")
    result = command("check", pruned, "--policy", policy, "--json").expect(1).json
    assert statuses(result) == {"latency.min_speedup": "skipped"}
    assert result["passed"] is False


def test_reports_that_cannot_be_written_are_2(command: Command, line: list[object]) -> None:
    outcome = command(*line, "--junit", line[1] / "j.xml").expect(2)
    assert "cannot be written" in outcome.err
    assert str(line[1] / "j.xml") in outcome.err
    assert outcome.out == "", "found before anything is checked"


def test_reports_go_into_folders_that_are_not_there_yet(
    command: Command, line: list[object], tmp_path: Path
) -> None:
    folder = tmp_path / "build" / "reports"
    outputs = {"--junit": "gate.xml", "--markdown": "gate.md", "--html": "gate.html"}
    options = [part for key, name in outputs.items() for part in (key, folder / name)]
    command(*line, *options).expect(0)
    assert sorted(path.name for path in folder.iterdir()) == sorted(outputs.values())
    assert JUnitXml.fromfile(str(folder / "gate.xml")).tests == 6


def test_the_policy_is_needed(command: Command, pruned: Path) -> None:
    assert "--policy" in command("check", pruned).expect(2).err


def test_the_recipe_says_how_data_are_read(
    command: Command, line: list[object], evaluation_data: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"[data]\neval = {json.dumps(str(evaluation_data))}\n")
    at = line.index("--data")
    without = [*line[:at], *line[at + 2 :]]
    assert statuses(command(*without, "--json").expect(1).json)["accuracy.min"] == "skipped"
    assert command(*without, "--recipe", recipe, "--json").expect(0).json["passed"]


def test_python_data_need_permission(command: Command, line: list[object]) -> None:
    at = line.index("--data")
    line[at + 1] = "python:os.path:join"
    outcome = command(*line, "--json").expect(2)
    assert "--allow-python" in outcome.err


def test_it_works_without_torch(
    process: Command, line: list[object], without_torch: dict[str, str]
) -> None:
    assert process(*line, "--json", **without_torch).expect(0).json["passed"]


def test_a_tampered_model_does_not_pass(command: Command, line: list[object], pruned: Path) -> None:
    proto = onnx.load(pruned)
    proto.graph.initializer[1].raw_data = b"\0" * len(proto.graph.initializer[1].raw_data)
    onnx.save(proto, pruned)
    result = command(*line, "--json").expect(1).json
    assert statuses(result)["metadata.true_to_file"] == "fail"


def test_the_page_says_whether_it_may_ship(
    command: Command, line: list[object], policy: Path, tmp_path: Path
) -> None:
    """It is the page that `report` makes of the JSON, also of a model that cannot be read."""
    page, other = tmp_path / "gate.html", tmp_path / "report.html"
    outcome = command(*line, "--json", "--html", page).expect(0)
    (tmp_path / "gate.json").write_text(outcome.out, encoding="utf-8")
    command("report", tmp_path / "gate.json", "-o", other).expect(0)
    assert page.read_bytes() == other.read_bytes()
    assert "every check passed" in page.read_text(encoding="utf-8")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no model")
    command("check", damaged, "--policy", policy, "--html", page).expect(3)
    assert "at least one check did not pass" in page.read_text(encoding="utf-8")
    nowhere = damaged / "gate.html"
    command("check", damaged, "--policy", policy, "--html", nowhere).expect(2)


def test_digests_and_names_stand_in_the_table_as_a_whole(
    command: Command, line: list[object], policy: Path, classifier: Path
) -> None:
    policy.write_text(RULES.replace("[signature]", 'source_sha256 = "baseline"\n[signature]'))
    text = command(*line).expect(0).out
    rows = [[cell.strip() for cell in row.split("│")] for row in text.splitlines() if "│" in row]
    assert "…" not in text
    digest = hashlib.sha256(classifier.read_bytes()).hexdigest()
    assert digest in "".join(row[4] for row in rows if len(row) > 4)


def test_a_negative_variance_is_not_finite(command: Command, tmp_path: Path) -> None:
    """Its root is NaN, which the Clip behind it turns into a number."""
    one = "{1.0, 1.0}"
    path, policy = tmp_path / "model.onnx", tmp_path / "policy.toml"
    policy.write_text("[outputs]\nfinite = true\n")
    for variance, code in (("{1.0, 0.5}", 0), ("{1.0, -0.5}", 1)):
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]>'
            f"g (float[N, 2, 3] x) => (float[N, 2, 3] y)"
            f" <float[2] s = {one}, float[2] b = {one}, float[2] m = {one},"
            f" float[2] v = {variance}, float low = {{0.0}}, float high = {{6.0}}>"
            " { n = BatchNormalization(x, s, b, m, v) y = Clip(n, low, high) }"
        )
        onnx.save(proto, path)
        outcome = command("check", path, "--policy", policy, "--json").expect(code)
        if code:
            (found,) = [c for c in outcome.json["checks"] if c["name"] == "outputs.finite"]
            assert "v: 1 of 2 variances are negative" in found["message"]
