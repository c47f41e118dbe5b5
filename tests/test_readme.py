"""Figures in the README and the docs are those of the committed results files."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def results(name: str) -> Any:
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"]


@pytest.mark.parametrize("supervision", ["labels", "none"])
def test_the_demo_table(supervision: str) -> None:
    for run in results("orientation"):
        if run["supervision"] != supervision:
            continue
        validation = run["validation"]
        speedup = run["speedup"]
        row = (
            f"| {supervision} | {run['seed']} | {100 * validation['dense']['top1']:.2f} % "
            f"| {100 * validation['pruned']['top1']:.2f} % "
            f"| {run['zeros']:,} of {run['weights']:,} "
            f"| {speedup['ratio']:.2f}× [{speedup['low']:.2f}, {speedup['high']:.2f}] "
            f"| {run['seconds'] / 60:.1f} min |"
        )
        assert row in README


def test_the_costs() -> None:
    selection = results("selection")
    assert f"{selection['seconds']['median']:.1f} s" in README
    upkeep = results("mask_upkeep")["model"]["share_of_step"]
    assert f"{100 * upkeep['median']:.2f} %" in README
