import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects
import pytest
from PIL import Image

from onnxprune.errors import OutputError, UsageError
from onnxprune.validate.report import build_report, write_report
from onnxprune.validate.report_format import (
    duration,
    flatten,
    percent,
    points,
    short_count,
    shorten,
    size,
)
from onnxprune.validate.report_plots_shedding import shed_plot
from onnxprune.validate.report_plots_tensors import histogram_plot
from onnxprune.validate.report_plots_training import quality_plot, thin
from onnxprune.validate.report_summary import (
    latency_sentence,
    quality_sentence,
    speed_verdict,
    summarize,
)
from onnxprune.validate.run_record import Results, Speedup, read_run

from .pages import HOSTILE, Page, browse, needs_chromium, painted, squeezed

PLOT_KEYS = ["quality", "loss", "events", "tensors", "histogram", "latency", "ratio"]


def tensor(name: str, nonzeros: int, *, prunable: bool = True) -> dict[str, Any]:
    """A tensor of 1000 values, dense before."""
    edges = [-1.0, -0.5, 0.5, 1.0]
    return {
        "name": name,
        "op_type": "Conv",
        "shape": [10, 100],
        "size": 1000,
        "nonzeros_before": 1000,
        "nonzeros": nonzeros,
        "sparsity_before": 0.0,
        "sparsity": 1 - nonzeros / 1000,
        "prunable": prunable,
        "histogram": {
            "edges": edges,
            "before": [200, 600, 200],
            "after": [nonzeros // 2, 1000 - nonzeros, nonzeros - nonzeros // 2],
        },
    }


def results(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    dense = 10 + rng.gamma(2, 0.1, 50)
    pruned = dense * rng.normal(1, 0.005, 50)
    value: dict[str, Any] = {
        "schema_version": 1,
        "output": "pruned.onnx",
        "method": "gmp",
        "pattern": "unstructured",
        "target_sparsity": 0.8,
        "sparsity": 0.8,
        "size_bytes": {"dense": 8_000_000, "pruned": 8_010_000},
        "source_sha256": "ab" * 32,
        "payload_sha256": "cd" * 32,
        "data": {
            "train": {"samples": 900, "labelled": True, "digest": "11" * 32},
            "eval": {"samples": 100, "labelled": True, "digest": "22" * 32, "held_out": True},
        },
        "validation": {
            "dense": {"top1": 0.95, "loss": 0.2},
            "pruned": {"top1": 0.94, "loss": 0.21, "agreement": 0.97},
            "samples": 1000,
            "torch_vs_runtime_max_abs_error": 1e-6,
        },
        "latency": {
            "conclusive": True,
            "verdict": "The pruned model is as fast as the dense one.",
            "environment": {"cpu": "Test CPU", "threads": 1},
            "models": [
                {
                    "path": "dense.onnx",
                    "latency_ms": {"median": float(np.median(dense)), "p90": 10.5, "p99": 11.0},
                    "samples": dense.tolist(),
                    "speedup": {"ratio": 1.0, "low": 1.0, "high": 1.0},
                },
                {
                    "path": "pruned.onnx",
                    "latency_ms": {"median": float(np.median(pruned)), "p90": 10.5, "p99": 11.0},
                    "samples": pruned.tolist(),
                    "speedup": {"ratio": 1.0, "low": 0.99, "high": 1.01},
                },
            ],
        },
        "tensors": [
            tensor("stem.weight", 300),
            tensor("block.weight", 100),
            tensor("stem.bias", 1000, prunable=False),
        ],
        "environment": {"python": "3.11", "packages": {"numpy": "2.0"}},
        "timing": {"total_s": 353.2, "train_s": 40.0},
        "seed": 7,
        "notes": ["A note."],
    }
    return value | changes


def metrics(steps: int = 40) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {"kind": "eval", "step": 0, "sparsity": 0.0, "metrics": {"top1": 0.95}}
    ]
    for step in range(1, steps + 1):
        progress = step / 40
        lines.append(
            {
                "kind": "train",
                "step": step,
                "progress": progress,
                "loss": math.exp(-step / 10),
                "lr": 0.1 * (1 - progress),
                "sparsity": 0.8 * progress,
            }
        )
        if step % 10 == 0:
            lines.append({"kind": "event", "step": step, "sparsity": 0.8 * progress, "pruned": 400})
            lines.append(
                {
                    "kind": "eval",
                    "step": step,
                    "sparsity": 0.8 * progress,
                    "metrics": {"top1": 0.95 - 0.01 * progress},
                }
            )
    return lines


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", results())


def write_run(
    folder: Path,
    outcome: dict[str, Any] | None,
    *,
    status: str = "finished",
    steps: int = 40,
    recipe: str = '[sparsity]\ntarget = 0.8\nmethod = "gmp"\n',
) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"schema_version": 1, "status": status}))
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    (folder / "plan.json").write_text(json.dumps({"target_sparsity": 0.8, "steps": 40}))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in metrics(steps))
    )
    if outcome is not None:
        (folder / "results.json").write_text(json.dumps(outcome))
    return folder


def test_summary_says_what_was_asked_and_what_came_out(run_dir: Path) -> None:
    page = Page(build_report(run_dir))
    tiles = {attrs["data-key"]: text for attrs, text in page.all("div") if "data-key" in attrs}
    assert "80.00\u00a0%" in tiles["sparsity"]
    assert "94.00\u00a0%" in tiles["quality"]
    assert "95.00\u00a0% dense, \u22121.00\u00a0points" in tiles["quality"]
    assert "8.01\u00a0MB" in tiles["size"]
    assert "1.00\u00d7" in tiles["speed"]
    assert "no speedup" in tiles["speed"]
    words = " ".join(page.texts("p"))
    assert "1\u202f600 of 2\u202f000" in words
    assert "1\u202f000 held-out samples" in words
    assert "No speedup" in words
    assert "unstructured zeros on a dense kernel" in words
    assert "seed 7" in words
    assert page.texts("h1") == ["pruned.onnx"]
    assert page.all("span", class_="status status-finished")


def test_page_is_self_contained_and_small(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(run_dir, out)
    assert out.stat().st_size < 6_000_000
    page = Page(out.read_text(encoding="utf-8"))
    for tag, attrs, _ in page.elements:
        assert tag not in ("link", "iframe", "object", "img", "base")
        assert "src" not in attrs
        assert not any(key.startswith("on") for key in attrs)
        assert attrs.get("href") is None or str(attrs["href"]).startswith("#")
    (policy,) = [
        attrs["content"]
        for attrs, _ in page.all("meta")
        if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    assert "unsafe-eval" not in policy


def test_headings_and_names_make_the_page_navigable(run_dir: Path) -> None:
    page = Page(build_report(run_dir))
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = [str(attrs["href"])[1:] for attrs, _ in page.all("a")]
    assert targets[0] == "content"
    assert set(targets) <= set(ids)
    plots = page.all("div", role="img")
    assert [attrs["id"] for attrs, _ in plots] == [f"plot-{key}" for key in PLOT_KEYS]
    assert all(attrs["aria-label"] for attrs, _ in plots)
    assert page.all("html", lang="en")


def test_plots_hold_the_numbers_of_the_run(run_dir: Path) -> None:
    plots = Page(build_report(run_dir)).plots()
    assert list(plots) == PLOT_KEYS
    quality, sparsity = plots["quality"]["figure"]["data"][:2]
    assert quality["x"] == [0, 10, 20, 30, 40]
    assert quality["y"] == [0.95, 0.9475, 0.945, 0.9425, 0.94]
    assert sparsity["x"] == [0, 10, 20, 30, 40]
    assert sparsity["y"] == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert sparsity["yaxis"] == "y2"
    after, before = plots["tensors"]["figure"]["data"][:2]
    assert after["x"] == [0.7, 0.9]
    assert before["x"] == [0.0, 0.0]
    assert plots["tensors"]["figure"]["layout"]["yaxis"]["ticktext"] == [
        "stem.weight",
        "block.weight",
    ]
    assert sum(plots["latency"]["figure"]["data"][0]["y"]) >= 48
    rounds = plots["ratio"]["figure"]["data"][0]["y"]
    assert 45 <= sum(rounds) <= 50


def test_shed_weights_and_budget_are_shown(tmp_path: Path) -> None:
    cost = {"epochs": 2, "steps": 40, "mean_density": 0.5}
    flops = {"training_flops_dense": 8_000_000, "training_flops": 4_000_000}
    overlap = {"jaccard": 0.75, "expected": 0.25}
    outcome = results(budget=cost | flops, overlap_with_one_shot=overlap)
    folder = write_run(tmp_path / "run", outcome)
    with (folder / "metrics.jsonl").open("a") as log:
        for step, shed in ((10, 3), (20, 1234)):
            point = {"step": step, "kept": 9000, "shed": shed, "shed_relative": 77}
            log.write(json.dumps({"kind": "shed", **point}) + "\n")
    page = build_report(folder)
    for words in ("Shedding", "8e+06 FLOPs", "4e+06, in theory", "mean density 50", "by 75"):
        assert words in page, words
    plot = shed_plot(read_run(folder))
    assert plot is not None
    assert [trace["y"] for trace in plot.figure["data"]] == [[3, 1234], [77, 77]]


@pytest.mark.parametrize(("dead", "said"), [(1234, True), (0, False), (None, False)])
def test_dead_weights_are_named(tmp_path: Path, dead: int | None, said: bool) -> None:
    page = build_report(write_run(tmp_path / "run", results(dead_weights=dead)))
    assert ("do nothing" in page) is said


def test_dead_channels_are_counted(tmp_path: Path) -> None:
    outcome = results(dead_channels={"inputs": 3, "outputs": 41})
    assert "3 in channels and 41 out channels" in build_report(write_run(tmp_path / "run", outcome))
    none = results(dead_channels={"inputs": 0, "outputs": 0})
    assert "out channels" not in build_report(write_run(tmp_path / "none", none))


def controlled_run(folder: Path, last: int = 40) -> Path:
    """A run of `cascade-gmp`: planned at steps 10, 20 and 30, and ahead, behind, and even there."""
    write_run(folder, results(method="cascade-gmp"))
    planned = [(10, 0.2), (20, 0.6), (30, 0.8)]
    schedule = [{"step": step, "zeros": 0, "sparsity": sparsity} for step, sparsity in planned]
    plan = {"target_sparsity": 0.8, "steps": 40, "schedule": schedule}
    (folder / "plan.json").write_text(json.dumps(plan))
    followed = [(10, 0.3, 600, 100, 200, 0), (20, 0.45, 300, 0, 300, 0), (30, 0.8, 700, 5, 0, 1)]
    lines = [{"kind": "eval", "step": 0, "sparsity": 0.0, "metrics": {"top1": 0.95}}]
    for step, sparsity, pruned, closed, harvested, waited in followed:
        took = {"pruned": pruned, "closed": closed, "harvested": harvested, "waited": waited}
        lines.append({"kind": "event", "step": step, "sparsity": sparsity, **took})
    lines = [line for line in lines if line["step"] <= last]
    lines.append({"kind": "train", "step": last, "progress": last / 40, "loss": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_events_are_split_into_closure_harvest_and_magnitude(tmp_path: Path) -> None:
    page = Page(build_report(controlled_run(tmp_path / "run")))
    bars = {trace["name"]: trace for trace in page.plots()["events"]["figure"]["data"]}
    assert {name: trace["y"] for name, trace in bars.items()} == {
        "closure": [100, 0, 5],
        "harvest": [200, 300, 0],
        "by magnitude": [300, 0, 695],
    }
    assert all(trace["x"] == [10, 20, 30] for trace in bars.values())
    rows = page.texts("tr")
    assert "10 20.00\u00a0% 30.00\u00a0% 600 100 200 300 0" in rows
    assert "30 80.00\u00a0% 80.00\u00a0% 700 5 0 695 1" in rows
    (words,) = [text for text in page.texts("p") if "pruning events took" in text]
    assert "1\u202f600 weights: 105 by structural closure" in words
    assert "500 as harvest" in words
    assert "995 by magnitude" in words


def test_events_that_waited_are_counted(tmp_path: Path) -> None:
    folder = controlled_run(tmp_path / "run")
    assert "waited, since" not in build_report(folder)
    with (folder / "metrics.jsonl").open("a") as log:
        for step in (15, 25, 25):
            log.write(json.dumps({"kind": "wait", "step": step, "put_off": 9}) + "\n")
    assert "At 2 events weights that were due by magnitude waited" in build_report(folder)


def test_what_random_pruning_took_is_not_called_magnitude(tmp_path: Path) -> None:
    page = Page(build_report(write_run(tmp_path / "run", results(method="random"))))
    names = [trace["name"] for trace in page.plots()["events"]["figure"]["data"]]
    assert names == ["closure", "harvest", "at random"]


def test_the_schedule_that_was_followed_is_shown_beside_the_planned_one(tmp_path: Path) -> None:
    page = Page(build_report(controlled_run(tmp_path / "run")))
    followed, planned = page.plots()["quality"]["figure"]["data"][1:3]
    assert (followed["x"], followed["y"]) == ([0, 10, 20, 30, 40], [0, 0.3, 0.45, 0.8, 0.8])
    assert planned["name"] == "planned sparsity"
    assert (planned["x"], planned["y"]) == ([0, 10, 20, 30, 40], [0, 0.2, 0.6, 0.8, 0.8])
    words = page.plots()["quality"]["alternative"]
    assert "10.00 points ahead of the planned schedule (step 10)" in words
    assert "15.00 points behind the planned schedule (step 20)" in words


def test_events_that_lie_ahead_are_no_delay(tmp_path: Path) -> None:
    folder = controlled_run(tmp_path / "run", last=15)
    run = json.loads((folder / "run.json").read_text()) | {"status": "interrupted"}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "results.json").unlink()
    plot = Page(build_report(folder)).plots()["quality"]
    assert "behind" not in plot["alternative"]
    assert plot["figure"]["data"][2]["y"] == [0, 0.2, 0.6, 0.8, 0.8]


def test_a_schedule_followed_to_the_letter_is_said_to_be(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", results())
    schedule = [{"step": step, "sparsity": 0.8 * (step / 40)} for step in (10, 20, 30, 40)]
    (folder / "plan.json").write_text(json.dumps({"steps": 40, "schedule": schedule}))
    words = Page(build_report(folder)).plots()["quality"]["alternative"]
    assert "The planned schedule was followed exactly." in words


def test_every_figure_is_valid_for_plotly(run_dir: Path) -> None:
    for plot in Page(build_report(run_dir)).plots().values():
        figure = painted(plot["figure"])
        chosen = plot["choices"][plot["chosen"]]["data"] if plot["choices"] else None
        data = [
            trace | (chosen[index] if chosen else {}) for index, trace in enumerate(figure["data"])
        ]
        plotly.graph_objects.Figure(data=data, layout=figure["layout"])
        plotly.graph_objects.Figure(layout=figure["narrow"])


def test_histogram_leaves_out_the_zeros_and_counts_them() -> None:
    plot = histogram_plot(Results.model_validate(results()))
    assert plot is not None
    stem = plot.choices[0]
    assert stem["data"][0]["y"] == [200, 600, 200]
    assert stem["data"][1]["y"] == [150, 0, 150]
    assert "after: 700 (70.00\u00a0%)" in stem["caption"]


def test_tensor_tables_list_every_tensor(run_dir: Path) -> None:
    page = Page(build_report(run_dir))
    names = page.texts("th", scope="row")
    assert [name for name in names if name.startswith(("stem", "block"))] == [
        "stem.weight",
        "block.weight",
        "stem.bias",
    ]
    rows = page.texts("tr")
    assert "block.weight Conv 10 × 100 1\u202f000 0 900 90.00\u00a0%" in rows
    assert "stem.bias Conv 10 × 100 1\u202f000 0 0 0.00\u00a0%" in rows


def layer(name: str, dense: int | None, nonzeros: int, ms: float | None) -> dict[str, Any]:
    """What a layer of 1000 weights costs."""
    sparse = None if dense is None else dense * nonzeros // 1000
    weights = {"size": 1000, "nonzeros": nonzeros, "size_bytes": 4000}
    costs = {"multiply_adds": dense, "multiply_adds_sparse": sparse, "ms": ms}
    return {"name": name, "op_type": "Conv", "shape": [10, 100], **weights, **costs}


def costs() -> dict[str, Any]:
    dense = [layer("stem.weight", 2_000_000, 1000, 0.5), layer("block.weight", None, 1000, 0.25)]
    pruned = [layer("stem.weight", 2_000_000, 300, 0.4), layer("block.weight", None, 100, None)]
    return {
        "dense": {"multiply_adds": None, "layers": dense},
        "pruned": {"multiply_adds": None, "layers": pruned},
    }


def test_what_layers_cost_stands_beside_their_sparsity(tmp_path: Path) -> None:
    page = Page(build_report(write_run(tmp_path / "run", results(cost=costs()))))
    keys = list(page.plots())
    assert keys[keys.index("tensors") + 1] == "cost"
    dense, actual = page.plots()["cost"]["figure"]["data"]
    assert (dense["x"], actual["x"]) == ([2_000_000], [600_000])
    rows = page.texts("tr")
    (row,) = [text for text in rows if text.startswith("stem.weight Conv 70.0")]
    assert row.endswith("2\u00a0M 600\u00a0k 4.00\u00a0kB 1.20\u00a0kB 0.5\u00a0ms 0.4\u00a0ms")
    assert "block.weight Conv 90.0\u00a0% – – 4.00\u00a0kB 400\u00a0bytes 0.25\u00a0ms –" in rows
    words = " ".join(page.texts("p"))
    assert (
        "1 layer: 2\u00a0M multiply-adds a sample if dense, and 600\u00a0k (30.0\u00a0%)" in words
    )
    assert "That is theory" in words
    assert "Times are by ONNX Runtime's profiler" in words


def test_without_times_that_is_said(tmp_path: Path) -> None:
    cost = costs()
    for side in cost.values():
        for entry in side["layers"]:
            entry["ms"] = None
    page = Page(build_report(write_run(tmp_path / "run", results(cost=cost))))
    words = " ".join(page.texts("p"))
    assert "Times were not measured." in words
    assert "profiler" not in words


def test_recipe_environment_and_notes_are_shown(run_dir: Path) -> None:
    page = Page(build_report(run_dir))
    assert page.texts("code")[-1] == '[sparsity] target = 0.8 method = "gmp"'
    rows = page.texts("tr")
    assert "packages.numpy 2.0" in rows
    assert "cpu Test CPU" in rows
    assert "total 5\u00a0min 53\u00a0s" in rows
    assert page.texts("li")[-1] == "A note."


@pytest.mark.parametrize("status", ["interrupted", "running", "failed"])
def test_an_unfinished_run_gives_a_page_that_says_so(tmp_path: Path, status: str) -> None:
    folder = write_run(tmp_path / "run", None, status=status, steps=17)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "train", "st')
    page = Page(build_report(folder))
    assert page.all("span", class_=f"status status-{status}")
    words = " ".join(page.texts("div", role="note"))
    assert "step 17 of 40" in words
    assert "Nothing has been validated" in words
    assert ("--resume" in words) == (status == "interrupted")
    assert list(page.plots()) == ["quality", "loss", "events"]


def test_a_run_without_any_step_has_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", results(latency=None, validation=None))
    (folder / "metrics.jsonl").unlink()
    (folder / "plan.json").unlink()
    page = Page(build_report(folder))
    assert list(page.plots()) == ["tensors", "histogram"]
    words = " ".join(page.texts("p"))
    assert "No training step was recorded" in words
    assert "Latency was not measured" in words
    assert "was not validated" in words


def test_a_resumed_run_keeps_the_last_line_of_a_step(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "eval", "step": 20, "metrics": {"top1": 0.5}}\n')
        stream.write('{"kind": "something new", "step": 20}\n')
    record = read_run(run_dir)
    assert [point.step for point in record.evals] == [0, 10, 20, 30, 40]
    assert record.evals[2].metrics == {"top1": 0.5}


def test_values_that_are_no_numbers_leave_gaps(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "eval", "step": 20, "metrics": {"top1": NaN}}\n')
        stream.write('{"kind": "train", "step": 41, "loss": Infinity, "lr": 0.1}\n')
    plots = Page(build_report(run_dir)).plots()
    assert plots["quality"]["figure"]["data"][0]["y"][2] is None
    assert max(plots["loss"]["figure"]["data"][0]["x"]) == 40


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.json", None, "neither a run nor a probe"),
        ("run.json", "{", "run.json is damaged"),
        ("run.json", '{"status": "great"}', "status"),
        ("run.json", "[1]", "a JSON object"),
        ("recipe.toml", None, "has no recipe.toml"),
        ("recipe.toml", "a = [", "recipe.toml is damaged"),
        ("plan.json", "nope", "plan.json is damaged"),
        ("plan.json", '{"schedule": [{"step": -1, "sparsity": 0}]}', "schedule.0.step"),
        ("results.json", None, "has no results.json"),
        ("results.json", '{"output": "x"}', "method"),
        ("results.json", "[" * 100_000, "results.json is damaged"),
        ("results.json", "9" * 5000, "results.json is damaged"),
        ("metrics.jsonl", 'oops\n{"kind": "eval", "step": 1}\n', "line 1"),
        ("metrics.jsonl", '{"kind": "train", "step": -3}\n', "line 1, step"),
        ("metrics.jsonl", '{"kind": "event", "step": 3, "sparsity": 0, "closed": -1}\n', "closed"),
        ("metrics.jsonl", '{"step": 3}\n', "kind"),
    ],
)
def test_a_missing_or_damaged_file_is_named(
    run_dir: Path, name: str, text: str | None, message: str
) -> None:
    if text is None:
        (run_dir / name).unlink()
    else:
        (run_dir / name).write_text(text)
    with pytest.raises(UsageError, match=re.escape(name)) as caught:
        build_report(run_dir)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_contradictions_in_the_results_are_damage(tmp_path: Path) -> None:
    bad = tensor("x", 100)
    bad["nonzeros"] = 1001
    folder = write_run(tmp_path / "a", results(tensors=[bad]))
    with pytest.raises(UsageError, match="1001 non-zeros"):
        build_report(folder)
    bad = tensor("x", 100)
    bad["histogram"]["before"] = [1]
    folder = write_run(tmp_path / "b", results(tensors=[bad]))
    with pytest.raises(UsageError, match="histogram"):
        build_report(folder)


def test_not_a_run_directory_and_no_place_to_write(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run directory"):
        build_report(tmp_path / "missing")
    with pytest.raises(OutputError):
        write_report(run_dir, run_dir / "run.json" / "report.html")
    write_report(run_dir, tmp_path / "no" / "such" / "folder" / "report.html")
    assert (tmp_path / "no" / "such" / "folder" / "report.html").is_file()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(tmp_path: Path, text: str) -> None:
    folder = write_run(
        tmp_path / "run",
        results(
            output=f"a{text}",
            method=text,
            notes=[text],
            tensors=[tensor(text, 100)],
            environment={text: text},
        ),
        recipe=f"a = {json.dumps(text)}\n",
    )
    page = Page(build_report(folder))
    assert len(page.all("script")) == 3
    assert not page.all("img")
    assert not page.all("b")
    assert page.texts("li")[-1] == squeezed(text)
    plots = page.plots()
    assert plots["histogram"]["choices"][0]["label"] == text
    drawn = plots["tensors"]["figure"]["data"][0]["customdata"][0][0]
    assert "<" not in drawn


def test_a_large_run_stays_under_the_limit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = []
    for index in range(1500):
        entry = tensor(f"model.layers.{index}.{'x' * 60}.weight", 100, prunable=index % 3 != 0)
        entry["histogram"] = {
            "edges": rng.normal(size=65).cumsum().tolist(),
            "before": rng.integers(0, 10**6, 64).tolist(),
            "after": rng.integers(0, 10**6, 64).tolist(),
        }
        tensors.append(entry)
    folder = write_run(tmp_path / "run", results(tensors=tensors))
    lines = [
        {"kind": "train", "step": step, "loss": float(rng.random()), "lr": 0.1, "sparsity": 0.1}
        for step in range(30_000)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = build_report(folder)
    assert len(text.encode()) < 6_000_000
    plots = Page(text).plots()
    assert len(plots["tensors"]["figure"]["data"][0]["x"]) == 400
    assert len(plots["loss"]["figure"]["data"][0]["x"]) <= 1600


def test_thinning_keeps_ends_and_extremes() -> None:
    line = [(step, math.sin(step)) for step in range(10_000)]
    line[5000] = (5000, 9.0)
    kept = thin(line)
    assert len(kept) <= 1600
    assert kept[0] == line[0]
    assert kept[-1] == line[-1]
    assert (5000, 9.0) in kept
    assert kept == sorted(kept)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.10, 1.30, "faster"),
        (0.70, 0.90, "slower"),
        (0.99, 1.01, "same"),
        (1.001, 1.004, "same"),
        (0.96, 1.01, "same"),
        (0.80, 1.20, "inconclusive"),
        (1.01, 1.05, "faster"),
    ],
)
def test_speed_is_claimed_only_as_far_as_the_interval_reaches(
    low: float, high: float, verdict: str
) -> None:
    speedup = Speedup(ratio=(low + high) / 2, low=low, high=high)
    assert speed_verdict(speedup) == verdict
    outcome = results()
    outcome["latency"]["models"][1]["speedup"] = speedup.model_dump()
    sentence = latency_sentence(Results.model_validate(outcome))
    start = {
        "faster": "Faster",
        "slower": "Slower",
        "same": "No speedup",
        "inconclusive": "Speed is undecided",
    }
    assert sentence.startswith(start[verdict])


@pytest.mark.parametrize(("low", "words"), [(-0.004, "more than"), (0.0, "may be")])
def test_the_difference_is_said_with_its_interval(low: float, words: str) -> None:
    """The interval is the one that was measured on the pairs; none is made up here."""
    outcome = results()
    found = {"difference": -0.01, "low": -0.02, "high": low, "lost": 30, "gained": 20}
    outcome["validation"]["against_dense"] = {"top1": found}
    sentence = quality_sentence(Results.model_validate(outcome))
    assert f"95 % interval {points(-0.02)} to {points(low)}: {words} chance" in sentence
    del outcome["validation"]["against_dense"]
    assert "interval" not in quality_sentence(Results.model_validate(outcome))


def test_a_run_without_labels_reports_agreement(tmp_path: Path) -> None:
    outcome = results(
        validation={"dense": {}, "pruned": {"agreement": 0.985, "cosine": 0.99}, "samples": 500}
    )
    sentence = quality_sentence(Results.model_validate(outcome))
    assert "the dense model's answer in 98.50\u00a0% of cases on 500 held-out samples" in sentence
    summary = summarize(read_run(write_run(tmp_path / "run", outcome)))
    assert [figure.key for figure in summary.figures] == ["sparsity", "quality", "size", "speed"]


def test_quality_plot_starts_from_the_dense_model(run_dir: Path) -> None:
    plot = quality_plot(read_run(run_dir), "top1")
    assert plot is not None
    level = plot.figure["layout"]["shapes"][0]
    assert (level["yref"], level["y0"]) == ("y", 0.95)
    assert plot.table is not None
    assert plot.table.rows[-1] == ["40", "94.00\u00a0%", "80.00\u00a0%"]


def test_numbers_in_words() -> None:
    assert percent(-0.5) == "\u221250.00\u00a0%"
    assert percent(None) == percent(math.nan) == "\u2013"
    assert points(0.0) == "\u00b10.00\u00a0points"
    assert points(0.01) == "+1.00\u00a0points"
    assert size(999) == "999\u00a0bytes"
    assert size(6_890_000) == "6.89\u00a0MB"
    assert duration(3.21) == "3.2\u00a0s"
    assert duration(7261) == "2\u00a0h 1\u00a0min"
    assert shorten("abcdefghij", 5) == "ab…ij"
    assert shorten("abc", 3) == "abc"
    assert short_count(12_845_056) == "12.85\u00a0M"
    assert [short_count(value) for value in (0, 999, 999_960)] == ["0", "999", "1\u00a0M"]
    assert short_count(None) == "\u2013"
    assert flatten({"a": {"b": True, "c": None}, "d": [1, 2]}) == [
        ("a.b", "yes"),
        ("a.c", "unknown"),
        ("d", "1, 2"),
    ]


@needs_chromium
def test_every_plot_draws_in_a_browser_without_console_messages(tmp_path: Path) -> None:
    hostile = results(tensors=[tensor(text, 100) for text in HOSTILE], notes=HOSTILE)
    page = tmp_path / "report.html"
    write_report(write_run(tmp_path / "run", hostile), page)
    dom, console = browse(page, tmp_path / "profile", "--dump-dom", "--window-size=1280,900")
    assert console == []
    drawn = Page(dom)
    assert drawn.all("html", data_plots="drawn")
    assert drawn.texts("title") == ["pruned.onnx – onnxprune report"]
    for key in PLOT_KEYS:
        content = dom.split(f'id="plot-{key}"')[1].split("</figure>")[0]
        assert content.count('class="main-svg"') >= 1, key
    assert len(drawn.all("path", class_="js-line")) >= 4
    bars = dom.split('id="plot-tensors"')[1].split("</figure>")[0]
    assert bars.count('class="point"') >= len(HOSTILE)
    assert not drawn.all("img")


@needs_chromium
def test_choosing_a_tensor_redraws_and_says_so(run_dir: Path, tmp_path: Path) -> None:
    text = build_report(run_dir)
    action = (
        "<script>const s=document.getElementById('choose-histogram');s.value='1';"
        "s.dispatchEvent(new Event('change'));"
        "document.getElementById('log-histogram').click();</script>"
    )
    text = re.sub(r'content="default-src[^"]*"', 'content="object-src data:"', text, count=1)
    page = tmp_path / "report.html"
    page.write_text(text.replace("</body>", f"{action}</body>"), encoding="utf-8")
    dom, console = browse(page, tmp_path / "profile", "--dump-dom")
    assert console == []
    drawn = Page(dom)
    assert "zeros before: 0, after: 900" in drawn.texts("p", id="chosen-histogram")[0]
    label = drawn.all("div", id="plot-histogram")[0][0]["aria-label"]
    assert label is not None
    assert "block.weight" in label
    bins = dom.split('id="bins-histogram"')[1].split("</tbody>")[0]
    assert re.findall(r"<td>([^<]*)</td>", bins) == ["200", "50", "600", "0", "200", "50"]


@needs_chromium
@pytest.mark.parametrize(("scheme", "dark"), [(0, True), (1, False)])
def test_the_page_follows_the_colour_scheme(
    run_dir: Path, tmp_path: Path, scheme: int, dark: bool
) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    write_report(run_dir, page)
    options = [f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}"]
    _, console = browse(page, tmp_path / "profile", *options, "--window-size=1000,2400")
    assert console == []
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.int64)
    brightness = np.median(pixels)
    assert brightness < 60 if dark else brightness > 200
    series = np.array([0x56, 0xB4, 0xE9] if dark else [0x00, 0x72, 0xB2])
    assert (np.abs(pixels - series).sum(axis=2) < 12).sum() > 200


def test_without_evaluations_on_the_way_sparsity_has_the_plot_for_itself(run_dir: Path) -> None:
    lines = [line for line in metrics() if line["kind"] != "eval"]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot = Page(build_report(run_dir)).plots()["quality"]
    layout = plot["figure"]["layout"]
    assert layout["yaxis"]["visible"] is False
    assert layout["yaxis2"]["domain"] == [0, 1]
    assert [note["text"] for note in layout["annotations"]] == ["<b>sparsity</b>"]
