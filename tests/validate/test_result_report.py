"""The pages of a bench and of a gate."""

import json
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects
import pytest

from onnxprune.errors import UsageError
from onnxprune.validate.result_report import build_result_report, write_result_report

from .pages import HOSTILE, Page, browse, needs_chromium, painted


def model(path: str, median: float, ratio: float, **more: Any) -> dict[str, Any]:
    return {
        "path": path,
        "latency_ms": {"median": median, "p90": 1.1 * median, "p99": 1.5 * median},
        "speedup": {"ratio": ratio, "low": ratio - 0.02, "high": ratio + 0.02},
        **more,
    }


def bench(**changes: Any) -> dict[str, Any]:
    operators = [{"op_type": "Conv", "nodes": 3, "ms": 7.0, "share": 0.7}]
    return {
        "conclusive": True,
        "verdict": "pruned.onnx: no speedup\nsmall.onnx: 2.00 times as fast",
        "environment": {"cpu": "Test CPU", "threads": 1},
        "models": [
            model("a/dense.onnx", 10.0, 1.0, size_bytes=8_000_000, load_ms=12.0),
            model("b/pruned.onnx", 10.0, 1.0),
            model("b/small.onnx", 5.0, 2.0, operators=operators, throughput_per_s=200.0),
        ],
    } | changes


def gate(*statuses: str, **changes: Any) -> dict[str, Any]:
    checks = [
        {
            "name": f"table.key{number}",
            "status": status,
            "message": f"message {number}",
            "measured": {"x": 0.75},
            "required": 0.8,
        }
        for number, status in enumerate(statuses)
    ]
    passed = bool(statuses) and set(statuses) == {"pass"}
    return {"model": "out/pruned.onnx", "policy": "p.toml", "passed": passed, "checks": checks} | (
        changes
    )


def page_of(tmp_path: Path, value: Any) -> Page:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(value), encoding="utf-8")
    return Page(build_result_report(file))


def tiles(page: Page) -> dict[str, str]:
    return {
        str(attrs["data-key"]): " ".join(text.split())
        for attrs, text in page.all("div")
        if "data-key" in attrs
    }


def test_a_bench_shows_every_model(tmp_path: Path) -> None:
    page = page_of(tmp_path, bench())
    assert page.texts("h1") == ["Latency of 3 models"]
    assert "no speedup, 95 % interval" in tiles(page)["speed-1"]
    assert "2.00×" in tiles(page)["speed-2"]
    assert "faster" in tiles(page)["speed-2"]
    (trace,) = page.plots()["speedup"]["figure"]["data"]
    assert trace["x"] == [1.0, 2.0]
    assert trace["error_x"]["array"] == [0.02, 0.02]
    median, _, p99 = page.plots()["quantiles"]["figure"]["data"]
    assert (median["x"], p99["x"]) == ([10.0, 10.0, 5.0], [15.0, 15.0, 7.5])
    rows = {text.split()[0]: text for text in page.texts("tr")}
    assert "baseline" in rows["dense.onnx"]
    assert "70.0\u00a0%" in rows["Conv"]
    assert "small.onnx: 2.00 times as fast" in page.texts("p")


def spread(median: float) -> list[float]:
    """Quantiles of latencies from half the median to one and a half."""
    return [median * (0.5 + percent / 100) for percent in range(101)]


def distributed(**changes: Any) -> dict[str, Any]:
    """A bench with distributions."""
    value = bench(**changes)
    for one in [value, *value.get("batches", [])]:
        one["models"] = [
            model
            | {"quantiles_ms": spread(model["latency_ms"]["median"])}
            | {"ratio_quantiles": spread(model["speedup"]["ratio"])}
            for model in one["models"]
        ]
    return value


def test_a_bench_shows_distributions_with_intervals(tmp_path: Path) -> None:
    page = page_of(tmp_path, distributed())
    plots = page.plots()
    dense, _, small = plots["calls"]["figure"]["data"]
    assert (dense["name"], small["name"]) == ("dense.onnx", "small.onnx")
    assert dense["x"] == pytest.approx(spread(10.0))
    assert dense["y"][:3] == [0.0, 0.01, 0.02]
    assert dense["line"]["color"] != small["line"]["color"]
    lines = {trace["name"]: trace for trace in plots["rounds"]["figure"]["data"]}
    assert lines["small.onnx"]["x"] == pytest.approx(spread(2.0))
    mark = lines["small.onnx: 95 % interval"]
    assert (mark["x"], mark["error_x"]["array"]) == ([2.0], [0.02])
    assert "dense.onnx" not in lines
    low, high = plots["rounds"]["figure"]["layout"]["xaxis"]["range"]
    assert low < 0.5
    assert high > 2.9
    rows = page.texts("tr")
    (row,) = [text for text in rows if text.startswith("small.onnx 2.5\u00a0ms")]
    assert [cell.strip("\u00a0ms") for cell in row.split(" ")[1:6]] == [
        "2.5",
        "2.75",
        "3.75",
        "5",
        "6.25",
    ]
    for plot in plots.values():
        figure = painted(plot["figure"])
        plotly.graph_objects.Figure(data=figure["data"], layout=figure["layout"])
        plotly.graph_objects.Figure(layout=figure["narrow"])


def test_slow_calls_beyond_the_axis_are_told(tmp_path: Path) -> None:
    value = distributed()
    value["models"][0]["quantiles_ms"][-1] = 5000.0
    plot = page_of(tmp_path, value).plots()["calls"]
    assert plot["figure"]["layout"]["xaxis"]["range"][1] < 20
    text = " ".join(page_of(tmp_path, value).texts("p"))
    assert "The slowest calls lie beyond the right edge, up to 5000\u00a0ms." in text


def test_samples_stand_in_for_quantiles(tmp_path: Path) -> None:
    """As in what runs record."""
    value = bench()
    value["models"][0]["samples"] = [1.0, 2.0, 3.0]
    (line,) = page_of(tmp_path, value).plots()["calls"]["figure"]["data"]
    assert (line["x"][0], line["x"][50], line["x"][100]) == (1.0, 2.0, 3.0)


def test_a_result_without_distributions_says_so(tmp_path: Path) -> None:
    said = "This result holds quantiles alone and no distributions"
    page = page_of(tmp_path, bench())
    assert any(text.startswith(said) for text in page.texts("p"))
    assert not {"calls", "rounds"} & page.plots().keys()
    page = page_of(tmp_path, distributed())
    assert not any(text.startswith(said) for text in page.texts("p"))


def test_many_models_are_all_in_the_table(tmp_path: Path) -> None:
    models = [model(f"m{number}.onnx", 10.0, 1.0) for number in range(14)]
    page = page_of(tmp_path, distributed(models=models))
    plot = page.plots()["calls"]
    assert len(plot["figure"]["data"]) == 9
    looks = [(t["line"]["color"], t["line"]["dash"]) for t in plot["figure"]["data"]]
    assert len(set(looks)) == 9
    rows = [text for text in page.texts("tr") if text.startswith("m13.onnx 5\u00a0ms")]
    assert len(rows) == 1


def layer(name: str, dense: int | None, nonzeros: int, ms: float | None) -> dict[str, Any]:
    """A layer of 100 weights."""
    sparse = None if dense is None else dense * nonzeros // 100
    facts = {"name": name, "op_type": "Conv", "shape": [10, 10], "prunable": True}
    weights = {"size": 100, "nonzeros": nonzeros, "size_bytes": 400}
    return facts | weights | {"multiply_adds": dense, "multiply_adds_sparse": sparse, "ms": ms}


def test_a_profiled_bench_shows_what_layers_cost(tmp_path: Path) -> None:
    value = bench()
    layers = [layer("stem", 2000, 50, 0.5), layer("head", None, 100, None)]
    value["models"][1]["cost"] = {"multiply_adds": None, "layers": layers, "left_out": 3}
    page = page_of(tmp_path, value)
    dense, actual = page.plots()["cost-1"]["figure"]["data"]
    assert (dense["x"], actual["x"]) == ([2000], [1000])
    rows = page.texts("tr")
    assert (
        "stem Conv 50.0\u00a0% 2\u00a0k 1\u00a0k 400\u00a0bytes 200\u00a0bytes 0.5\u00a0ms" in rows
    )
    assert "head Conv 0.0\u00a0% – – 400\u00a0bytes 400\u00a0bytes –" in rows
    words = " ".join(page.texts("p"))
    assert "1\u00a0k (50.0\u00a0%) at actual density, in theory" in words
    assert "Of 1 layer the file does not tell the shapes" in words
    assert "3 layers with fewer multiply-adds left out" in words
    assert "That is theory: dense kernels compute them all the same" in words


def test_a_model_of_unknown_shapes_has_a_table_without_a_plot(tmp_path: Path) -> None:
    value = bench()
    value["models"][1]["cost"] = {"layers": [layer("stem", None, 50, None)]}
    page = page_of(tmp_path, value)
    assert "cost-1" not in page.plots()
    assert any("pruned.onnx: Of 1 layer" in text for text in page.texts("p"))
    assert "stem Conv 50.0\u00a0% – – 400\u00a0bytes 200\u00a0bytes –" in page.texts("tr")


def test_a_layer_with_more_non_zeros_than_weights_is_refused(tmp_path: Path) -> None:
    value = bench()
    value["models"][1]["cost"] = {"layers": [layer("stem", 1, 101, None)]}
    with pytest.raises(UsageError, match="101 non-zeros in 100 weights"):
        page_of(tmp_path, value)


def test_a_bench_of_several_batch_sizes(tmp_path: Path) -> None:
    ratios = {1: (1.0, 2.0), 8: (1.5, 3.0)}
    batches = []
    for size, (pruned, small) in ratios.items():
        models = [
            model("a/dense.onnx", 10.0 * size, 1.0),
            model("b/pruned.onnx", 7.0 * size, pruned),
            model("b/small.onnx", 5.0 * size, small),
        ]
        batches.append({"batch": size, **bench(models=models, verdict=f"verdict {size}")})
    page = page_of(tmp_path, distributed(batches=batches))
    assert {"calls-1", "calls-8", "rounds-1", "rounds-8"} <= page.plots().keys()
    assert page.plots()["calls-8"]["figure"]["data"][2]["x"] == pytest.approx(spread(40.0))
    (trace,) = page.plots()["speedup"]["figure"]["data"]
    assert trace["x"] == [1.0, 1.5, 2.0, 3.0]
    words = page.texts("p")
    assert {"Batch size 1: verdict 1", "Batch size 8: verdict 8"} <= {*words}
    rows = [text for text in page.texts("tr") if text.startswith("small.onnx") and "(" in text]
    assert len(rows) == 2
    assert "40" in rows[1]
    assert "3.000×" in rows[1]


@pytest.mark.parametrize(
    ("statuses", "answer"),
    [
        (("pass", "pass"), "Yes"),
        (("pass", "fail"), "No"),
        (("pass", "skipped"), "No"),
        (("error",), "No"),
        ((), "No"),
    ],
)
def test_whether_it_may_ship(tmp_path: Path, statuses: tuple[str, ...], answer: str) -> None:
    """Nothing but passes is a pass, whatever the file claims."""
    for claimed in (True, False):
        page = page_of(tmp_path, gate(*statuses, passed=claimed))
        expected = answer if claimed else "No"
        assert tiles(page)["verdict"].startswith(f"May it ship?{expected}")


def test_what_did_not_pass_comes_first(tmp_path: Path) -> None:
    page = page_of(tmp_path, gate("pass", "skipped", "fail"))
    first = [text.split()[0] for text in page.texts("tr")[1:4]]
    assert first == ["table.key2", "table.key1", "table.key0"]
    words = page.texts("p")
    assert "table.key2 failed: message 2" in words
    assert "table.key1: message 1" in words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "page can be made of"),
        ("[1]", "JSON object"),
        ("{", "line 1"),
        ('{"checks": [{"name": 1}], "passed": true}', "checks.0"),
        ('{"models": [], "conclusive": true}', "models"),
    ],
)
def test_files_that_are_no_results(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"bench \.\.\. --json > FILE") as caught:
        build_result_report(file)
    assert expected in str(caught.value)


@needs_chromium
def test_the_pages_draw_in_a_browser(tmp_path: Path) -> None:
    hostile_gate = gate("fail")
    hostile_gate["checks"][0] |= {"name": HOSTILE[0], "message": HOSTILE[1], "measured": HOSTILE}
    hostile_bench = distributed(verdict=HOSTILE[0])
    named = model(f"c/{HOSTILE[4]}", 1.0, 10.0, quantiles_ms=spread(1.0))
    named["cost"] = {"layers": [layer(text, 100, 50, 1.0) for text in HOSTILE]}
    hostile_bench["models"].append(named)
    for name, value in (("gate", hostile_gate), ("bench", hostile_bench)):
        file, page = tmp_path / f"{name}.json", tmp_path / f"{name}.html"
        file.write_text(json.dumps(value), encoding="utf-8")
        write_result_report(file, page)
        dom, console = browse(page, tmp_path / f"{name}-profile", "--dump-dom")
        assert console == []
        drawn = Page(dom)
        assert drawn.all("html", data_plots="drawn")
        assert not drawn.all("img")
    assert drawn.texts("title") == ["Latency of 4 models – onnxprune report"]


def test_names_stand_above_their_rows_on_small_screens(tmp_path: Path) -> None:
    for plot in page_of(tmp_path, bench()).plots().values():
        wide, narrow = plot["figure"]["layout"]["yaxis"], plot["figure"]["narrow"]
        assert narrow["yaxis"]["showticklabels"] is False
        names = [(note["y"], note["text"]) for note in narrow["annotations"]]
        assert names == list(zip(wide["tickvals"], wide["ticktext"], strict=True))


def test_what_a_check_measured_is_told_in_words(tmp_path: Path) -> None:
    value = gate("fail", "fail", "fail")
    measured = [{f"t{index}": 0.25 for index in range(9)}, ["a", "b"], True]
    for check, one in zip(value["checks"], measured, strict=True):
        check["measured"] = one
    page = page_of(tmp_path, value)
    (table,) = page.all("table", class_="prose")
    assert table[1].count("t0: 0.25; t1: 0.25; t2: 0.25; t3: 0.25; and 5 more") == 1
    cells = page.texts("td")
    assert {"a, b", "yes"} <= set(cells)


def test_many_failures_are_counted(tmp_path: Path) -> None:
    words = page_of(tmp_path, gate(*["fail"] * 23)).texts("p")
    assert sum("failed: message" in text for text in words) == 20
    assert "3 more did not pass; the table below has them." in words


def test_a_model_that_was_timed_against_itself_has_two_names(tmp_path: Path) -> None:
    paths = ["a/model.onnx", "a/model.onnx", "b/model.onnx"]
    value = bench(models=[model(path, 10.0, 1.0) for path in paths])
    labels = ["a/model.onnx (1)", "a/model.onnx (2)", "b/model.onnx"]
    page = page_of(tmp_path, value)
    assert page.texts("th", scope="row")[:3] == labels
    assert page.plots()["quantiles"]["figure"]["layout"]["yaxis"]["ticktext"][:3] == labels
    value = bench(models=[model("a/model.onnx", 10.0, 1.0)] * 2)
    page = page_of(tmp_path, value)
    assert page.texts("th", scope="row")[:2] == ["model.onnx (1)", "model.onnx (2)"]


@needs_chromium
@pytest.mark.parametrize("width", [600, 1100])
def test_a_bench_of_long_names_and_numbers_stays_on_the_page(tmp_path: Path, width: int) -> None:
    """The table fits on a desktop's page, and scrolls within its frame on small ones."""
    numbers = {"size_bytes": 97_800_000, "load_ms": 312.0, "throughput_per_s": 1234.5}
    names = ("resnet50_v1_5_dense_opset17", "resnet50_v1_5_cascade_gmp_90_percent_seed3")
    models = [
        model(f"some/where/{name}.onnx", 10.123, 1.0, peak_memory_bytes=250_000_000, **numbers)
        for name in names
    ]
    file, page = tmp_path / "bench.json", tmp_path / "bench.html"
    file.write_text(json.dumps(bench(models=models)), encoding="utf-8")
    measure = (
        "<script>const t=document.querySelector('.table');document.body.dataset.widths="
        "[document.documentElement.scrollWidth,innerWidth,t.scrollWidth,t.clientWidth]"
        ".join(' ')</script>"
    )
    text = build_result_report(file).replace("</body>", f"{measure}</body>")
    text = re.sub(r'content="default-src[^"]*"', 'content="object-src data:"', text, count=1)
    page.write_text(text, encoding="utf-8")
    dom, _ = browse(page, tmp_path / "profile", "--dump-dom", f"--window-size={width},900")
    (body, _), *_ = Page(dom).all("body")
    content, window, inner, outer = map(int, str(body["data-widths"]).split())
    assert content <= window == width
    assert inner <= outer if width == 1100 else inner > outer
