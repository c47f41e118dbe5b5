"""Whether the model of a run may ship, as its page says it."""

import json
from pathlib import Path
from typing import Any

import pytest

from onnxprune.errors import UsageError
from onnxprune.validate.report import build_report

from .pages import HOSTILE, Page
from .test_report import results, write_run

DIGEST = "ab" * 32


def gate(*statuses: str, **changes: Any) -> dict[str, Any]:
    """What a check of the run's model printed."""
    checks = [
        {"name": f"table.key{number}", "status": status, "message": f"message {number}"}
        for number, status in enumerate(statuses)
    ]
    passed = bool(statuses) and set(statuses) == {"pass"}
    value = {"model": "pruned.onnx", "policy": "ci/policy.toml", "model_sha256": DIGEST}
    return value | {"passed": passed, "checks": checks} | changes


def page_of(folder: Path, found: dict[str, Any] | None, **changes: Any) -> Page:
    """The page of a run whose folder holds the result of a check."""
    outcome = results(**{"output_sha256": DIGEST} | changes)
    run = write_run(folder / "run", outcome, recipe='[data]\neval = "photos/val"\n')
    if found is not None:
        (run / "check.json").write_text(json.dumps(found))
    return Page(build_report(run))


def answer(page: Page) -> str:
    (text,) = [text for attrs, text in page.all("div") if attrs.get("data-key") == "ship"]
    return text


def test_without_a_check_nothing_is_decided_and_the_command_is_named(tmp_path: Path) -> None:
    page = page_of(
        tmp_path, None, output_path="out dir/pruned.onnx", source_path="models/dense.onnx"
    )
    assert answer(page).startswith("May it ship?Not decided")
    (commands,) = [text for text in page.texts("code") if text.startswith("onnxprune check")]
    folder = tmp_path / "run"
    assert commands == (
        "onnxprune check 'out dir/pruned.onnx' --policy policy.toml --baseline models/dense.onnx "
        f"--data photos/val --recipe {folder}/recipe.toml --json > {folder}/check.json "
        f"onnxprune report {folder}"
    )
    rows = page.texts("tr")
    assert "sparsity target reached: 80.00\u00a0% of 80.00\u00a0% asked" in rows
    assert any(row.startswith("export verified") and "1e\u221206" in row for row in rows)
    assert any(row.startswith("everything else not checked: that metadata") for row in rows)


def test_what_a_run_does_not_know_is_said(tmp_path: Path) -> None:
    page = page_of(tmp_path, None, validation=None, latency=None, sparsity=0.7)
    rows = page.texts("tr")
    assert "sparsity target not reached: 70.00\u00a0% of 80.00\u00a0% asked" in rows
    assert "accuracy against dense not measured: the run had no evaluation samples" in rows
    assert any(row.startswith("export not verified") for row in rows)
    assert "latency not measured" in rows
    assert any("--baseline DENSE.onnx" in text for text in page.texts("code"))


def test_the_drop_is_told_with_its_interval(tmp_path: Path) -> None:
    outcome = results()
    found = {"difference": -0.01, "low": -0.02, "high": -0.004}
    outcome["validation"]["against_dense"] = {"top1": found}
    page = page_of(tmp_path, None, validation=outcome["validation"])
    assert (
        "accuracy against dense top-1 accuracy changes by \u22121.00\u00a0points, 95 % interval "
        "\u22122.00\u00a0points to \u22120.40\u00a0points"
    ) in page.texts("tr")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (gate("pass", "pass"), "Yesall 2 checks of policy.toml passed"),
        (gate("pass", "fail"), "No1 of 2 checks of policy.toml did not pass"),
        (gate("pass", "skipped"), "No1 of 2 checks"),
        (gate("pass", "fail", passed=True), "No1 of 2 checks"),
        (gate("pass", passed=False), "No"),
        (gate(passed=True), "No"),
        (gate("pass", model_sha256="cd" * 32), "Not decidedthe check is of another file"),
        (gate("pass", model_sha256=None), "Not decideda check of an unknown file"),
        (gate("fail", model_sha256=None), "Not decideda check of an unknown file"),
    ],
)
def test_only_passes_of_this_very_file_are_a_yes(
    tmp_path: Path, found: dict[str, Any], words: str
) -> None:
    page = page_of(tmp_path, found)
    assert answer(page).startswith(f"May it ship?{words}")
    asked = any(text.startswith("onnxprune check") for text in page.texts("code"))
    assert asked == words.startswith("Not decided")


def test_a_run_that_knows_no_digest_has_no_yes(tmp_path: Path) -> None:
    page = page_of(tmp_path, gate("pass"), output_sha256=None)
    assert "Not decided" in answer(page)


def test_what_did_not_pass_comes_first(tmp_path: Path) -> None:
    page = page_of(tmp_path, gate("pass", "fail"))
    rows = [text for text in page.texts("tr") if text.startswith("table.key")]
    assert rows == ["table.key1 fail: message 1", "table.key0 pass: message 0"]
    assert any("did not pass: table.key1." in text for text in page.texts("p"))


def test_a_result_that_is_named_goes_before_that_in_the_folder(tmp_path: Path) -> None:
    page_of(tmp_path, gate("pass"))
    other = tmp_path / "other.json"
    other.write_text(json.dumps(gate("fail")))
    assert "No" in answer(Page(build_report(tmp_path / "run", check=other)))
    other.write_text(json.dumps({"conclusive": True, "models": []}))
    with pytest.raises(UsageError, match="models"):
        build_report(tmp_path / "run", check=other)
    (tmp_path / "run" / "check.json").write_text("{")
    with pytest.raises(UsageError, match=r"check\.json"):
        build_report(tmp_path / "run")


def test_the_result_of_a_bench_is_no_check(tmp_path: Path) -> None:
    page_of(tmp_path, None)
    bench = tmp_path / "bench.json"
    model = {"path": "m", "latency_ms": {"median": 1.0}}
    bench.write_text(json.dumps({"conclusive": True, "models": [model]}))
    with pytest.raises(UsageError, match="not the result of a check"):
        build_report(tmp_path / "run", check=bench)


def test_an_unfinished_run_has_nothing_to_ship(tmp_path: Path) -> None:
    page = Page(build_report(write_run(tmp_path / "run", None, status="interrupted", steps=9)))
    assert answer(page).startswith("May it ship?No")


def test_names_of_a_check_cannot_act_on_the_page(tmp_path: Path) -> None:
    found = gate("fail", policy=HOSTILE[1], model_sha256=DIGEST)
    found["checks"][0] |= {"name": HOSTILE[0], "message": HOSTILE[1]}
    page = page_of(tmp_path, found, output_path=HOSTILE[0])
    assert len(page.all("script")) == 3
    assert not page.all("img")
