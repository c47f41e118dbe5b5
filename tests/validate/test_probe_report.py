"""The page of a probe: its numbers, and what it does with odd or hostile ones."""

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

from onnxprune.errors import UsageError
from onnxprune.validate import build_report, report_path, write_probe_report
from onnxprune.validate.report_format import amount, distinct, share, signed, signed_interval

from .pages import HOSTILE, Page, browse, needs_chromium, painted

STEPS = [1, 5, 10]
PRUNED = 200


def curve(ends: list[int], kept: int = 800) -> list[dict[str, int]]:
    return [
        {"step": step, "kept": kept, "shed": shed, "shed_relative": shed // 2}
        for step, shed in zip(STEPS, ends, strict=True)
    ]


def arm(name: str, seed: int, ends: list[int], **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "seed": seed,
        "steps": STEPS[-1],
        "pruned": 0 if name == "control" else PRUNED,
        "weights": 1000,
        "shed": curve(ends),
        "elsewhere": {},
        "without_shed": {"loss_change": 0.001 * seed, "output_change": 0.002},
        "metrics": {"top1": 0.9 - 0.01 * seed, "loss": 0.3},
        "overlap_with_one_shot": {
            "jaccard": 0.5 + 0.1 * seed,
            "by_tensor": {"stem": 0.4 + 0.2 * seed, "head": 1.0},
            "expected": 0.2,
        },
        "seconds": 3.0,
    } | changes


def gain(values: list[float], verdict: str, **changes: Any) -> dict[str, Any]:
    mean = sum(values) / len(values)
    ends = {"low": mean - 0.5, "high": mean + 0.5} if len(values) > 1 else {}
    plain = {"mean": mean, "low": None, "high": None, "values": values} | ends
    relative = {**plain, "mean": 0.25}
    if len(values) > 1:
        relative |= {"low": -0.5, "high": 1.0}
    return {
        **plain,
        "verdict": verdict,
        "relative": relative,
        "seeds_that_would_decide": None,
    } | changes


def probe(**changes: Any) -> dict[str, Any]:
    """Two scores and two seeds: 300 and 340 shed by magnitude, 10 and 30 at random, control 20."""
    gains = {"magnitude": gain([1.4, 1.6], "present"), "random": gain([-0.05, 0.05], "absent")}
    elsewhere = {score: curve([0, 10, 20]) for score in gains}
    arms = [
        part
        for seed in (0, 1)
        for part in (
            arm("magnitude", seed, [0, 100, 300 + 40 * seed]),
            arm("random", seed, [0, 5, 10 + 20 * seed]),
            arm("control", seed, [0, 15, 25], elsewhere=elsewhere),
        )
    ]
    rows = [
        {"name": "stem", "op_type": "Conv", "size": 700, "shed": 310.0, "control": 15.0},
        {"name": "head", "op_type": "Gemm", "size": 300, "shed": 10.5, "control": 5.0},
    ]
    tensors = [{**row, "net_shed": row["shed"] - row["control"]} for row in rows]
    value: dict[str, Any] = {
        "schema_version": 1,
        "tool_version": "9.9",
        "model": "dense.onnx",
        "source_sha256": "ab" * 32,
        "verdict": "present",
        "score": "magnitude",
        "gain": gains["magnitude"],
        "gains": gains,
        "tau": 0.01,
        "pruned_share": 0.2,
        "target_sparsity": 0.8,
        "decay_horizon_steps": 8,
        "decay_horizon_reached": 1.25,
        "steps": STEPS[-1],
        "seeds": [0, 1],
        "curves": {},
        "tensors": {"magnitude": tensors, "random": []},
        "without_shed": {"loss_change": 0.001, "output_change": 0.002},
        "overlap_with_one_shot": {"magnitude": 0.55, "random": 0.55, "control": 0.55},
        "recommendation": {
            "method": "cascade-gmp",
            "events": 7,
            "settle_steps": 5,
            "reason": "shedding settles",
        },
        "notes": ["A note."],
        "arms": arms,
        "recipe": {"cascade": {"tau": 0.01}},
        "data": {"train": {"samples": 900, "labelled": True}},
        "environment": {"cpu": "Test CPU"},
    }
    return value | changes


def write(folder: Path, value: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "probe.json").write_text(json.dumps(value))
    return folder


def tiles(page: Page) -> dict[str, str]:
    return {str(a["data-key"]): text for a, text in page.all("div") if "data-key" in a}


def test_tiles_and_words_say_what_was_found(tmp_path: Path) -> None:
    page = Page(build_report(write(tmp_path / "probe", probe())))
    assert page.texts("h1") == ["Cascade shedding in dense.onnx"]
    shown = tiles(page)
    assert list(shown) == ["verdict-magnitude", "verdict-random", "horizon", "without-shed"]
    assert "Present" in shown["verdict-magnitude"]
    assert "+1.5000" in shown["verdict-magnitude"]
    assert "[+1.0000, +2.0000]" in shown["verdict-magnitude"]
    assert "Absent" in shown["verdict-random"]
    assert "125\u00a0%" in shown["horizon"]
    assert "8 steps needed, 10 run" in shown["horizon"]
    assert "+0.10\u00a0%" in shown["without-shed"]
    words = " ".join(page.texts("p"))
    assert "20\u00a0% of the 1\u202f000 prunable weights" in words
    assert "long enough for a complete cascade" in words
    assert "method cascade-gmp and 7 pruning events" in words
    assert "the verdict is present: shedding settles." in words
    command = page.texts("code")[0]
    assert command.startswith("onnxprune prune dense.onnx -o pruned.onnx ")
    assert command.endswith("--method cascade-gmp --set schedule.events=7")


def test_plots_hold_the_numbers_of_the_probe(tmp_path: Path) -> None:
    plots = Page(build_report(write(tmp_path / "probe", probe()))).plots()
    assert list(plots) == ["gain", "curve-0", "curve-1", "where-0", "overlap"]
    means, seeds = plots["gain"]["figure"]["data"]
    assert means["x"] == [1.5, 0.25, 0.0, 0.25]
    assert means["error_x"]["array"] == [0.5, 0.75, 0.5, 0.75]
    assert means["error_x"]["arrayminus"] == [0.5, 0.75, 0.5, 0.75]
    assert seeds["x"] == [1.4, 1.6, 1.4, 1.6, -0.05, 0.05, -0.05, 0.05]
    assert seeds["customdata"] == [0, 1] * 4
    band, treated, _, control, horizon = plots["curve-0"]["figure"]["data"]
    assert treated["x"] == STEPS
    assert treated["y"] == [0, 100, 320]
    assert control["y"] == [0, 10, 20]
    assert band["y"] == [0, 100, 340, 300, 100, 0]
    assert horizon["name"] == "decay horizon"
    assert plots["curve-0"]["figure"]["layout"]["shapes"][0]["x0"] == 8
    ranges = [plots[key]["figure"]["layout"]["yaxis"]["range"] for key in ("curve-0", "curve-1")]
    assert ranges[0] == ranges[1]
    shed, control = plots["where-0"]["figure"]["data"]
    assert (shed["x"], control["x"]) == ([310, 10.5], [15, 5])
    mean, dots, chance = plots["overlap"]["figure"]["data"]
    assert mean["x"] == [0.55] * 3
    assert dots["x"] == [0.5, 0.6] * 3
    assert chance["x"] == [0.2] * 3


def test_tables_hold_the_numbers_of_the_probe(tmp_path: Path) -> None:
    rows = Page(build_report(write(tmp_path / "probe", probe()))).texts("tr")
    for row in (
        "by magnitude present +1.5000 [+1.0000, +2.0000]",
        "at random absent +0.0000 [\u22120.5000, +0.5000]",
        "by magnitude, seed 1 200 800 340 20 320 +1.6000",
        "at random, seed 0 200 800 10 20 \u221210 \u22120.0500",
        "10 320 20 300",
        "stem Conv 700 310 15 +295.0 50.00\u00a0%",
        "control 55.00\u00a0% 50.00\u00a0% 60.00\u00a0% 20.00\u00a0%",
        "random 20 +0.100\u00a0% 0.200\u00a0%",
        "magnitude, seed 1 89.00\u00a0% 0.3 3.0\u00a0s",
        "cpu Test CPU",
    ):
        assert row in rows, row


def test_one_seed_has_no_interval_and_no_band(tmp_path: Path) -> None:
    one = probe(seeds=[0], gains={"magnitude": gain([1.5], "inconclusive")})
    one["arms"] = [arm for arm in one["arms"] if arm["seed"] == 0]
    page = Page(build_report(write(tmp_path / "probe", one)))
    assert "none from one seed" in tiles(page)["verdict-magnitude"]
    assert "inconclusive, as always with one seed" in " ".join(page.texts("p"))
    plots = page.plots()
    assert plots["gain"]["figure"]["data"][0]["error_x"]["array"] == [0, 0]
    names = [trace.get("name") for trace in plots["curve-0"]["figure"]["data"]]
    assert names == ["pruned by magnitude", "control, same positions", "decay horizon"]


def test_a_run_that_is_too_short_says_so(tmp_path: Path) -> None:
    short = probe(decay_horizon_steps=40, decay_horizon_reached=0.25)
    page = Page(build_report(write(tmp_path / "probe", short)))
    assert "too few for a complete cascade to show" in " ".join(page.texts("p"))
    assert page.plots()["curve-0"]["figure"]["layout"]["shapes"] == []
    without = probe(decay_horizon_steps=None, decay_horizon_reached=0.0)
    page = Page(build_report(write(tmp_path / "probe", without)))
    assert "Without weight decay" in " ".join(page.texts("p"))
    assert "no weight decay" in tiles(page)["horizon"]


def test_shed_weights_that_matter_are_called_so(tmp_path: Path) -> None:
    change = {"loss_change": 0.2, "output_change": 0.5}
    page = Page(build_report(write(tmp_path / "probe", probe(without_shed=change))))
    assert "tau (0.01) is too large" in " ".join(page.texts("p"))
    assert page.all("div", class_="tone-unsure", data_key="without-shed")


def test_nothing_shed_is_said_in_words(tmp_path: Path) -> None:
    page = Page(
        build_report(write(tmp_path / "probe", probe(tensors={"magnitude": [], "random": []})))
    )
    assert "No tensor shed a weight, in no arm." in page.texts("p")
    assert "where-0" not in page.plots()


def test_every_figure_is_valid_for_plotly(tmp_path: Path) -> None:
    for plot in Page(build_report(write(tmp_path / "probe", probe()))).plots().values():
        figure = painted(plot["figure"])
        plotly.graph_objects.Figure(data=figure["data"], layout=figure["layout"])
        plotly.graph_objects.Figure(layout=figure["narrow"])


def test_page_is_self_contained_and_navigable(tmp_path: Path) -> None:
    text = build_report(write(tmp_path / "probe", probe()))
    assert len(text.encode()) < 6_000_000
    page = Page(text)
    ids = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs, _ in page.elements:
        assert tag not in ("link", "iframe", "object", "img", "base")
        assert "src" not in attrs
        assert attrs.get("href") is None or str(attrs["href"])[1:] in ids
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(attrs["aria-label"] for attrs, _ in page.all("div", role="img"))
    policies = page.all("meta", http_equiv="Content-Security-Policy")
    assert "default-src 'none'" in str(policies[0][0]["content"])


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(tmp_path: Path, text: str) -> None:
    hostile = probe(model=text, notes=[text], environment={text: text}, recipe={text: {"a": text}})
    hostile["tensors"]["magnitude"][0]["name"] = text
    hostile["recommendation"]["reason"] = text
    page = Page(build_report(write(tmp_path / "probe", hostile)))
    assert len(page.all("script")) == 3
    assert not page.all("img")
    assert not page.all("b")
    drawn = page.plots()["where-0"]["figure"]
    assert "<" not in drawn["data"][0]["customdata"][0][0]
    assert "<" not in drawn["layout"]["yaxis"]["ticktext"][0]


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in probe().items() if name != key}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a JSON object"),
        (without("gains"), "gains"),
        (probe(score="taylor"), "taylor"),
        (probe(seeds=[0, 1, 2]), "none is 'magnitude' with seed 2"),
        (probe(arms=probe()["arms"][:-1]), "none is 'control' with seed 1"),
        (probe(overlap_with_one_shot={"magnitude": 1.0}), "'random' is missing"),
        (probe(tensors={"magnitude": []}), "tensors: 'random'"),
        (probe(gains={"magnitude": gain([1.0], "weak")}), "1 and 1 values"),
        (probe(gains={"magnitude": gain([1.0, 1.0], "great")}), "gains.magnitude.verdict"),
        (
            probe(arms=[*probe()["arms"][:-1], arm("control", 1, [0, 1, 2])]),
            "lack some of the steps",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=r"probe\.json is damaged") as caught:
        build_report(write(tmp_path / "probe", value))
    assert message in str(caught.value)


def test_values_that_are_no_numbers_leave_gaps(tmp_path: Path) -> None:
    broken = probe(without_shed={"loss_change": math.nan, "output_change": math.inf})
    broken["gains"]["random"]["values"] = [math.nan, 0.0]
    page = Page(build_report(write(tmp_path / "probe", broken)))
    assert page.plots()["gain"]["figure"]["data"][1]["x"][4:6] == [None, 0.0]


def test_many_tensors_stay_under_the_limit(tmp_path: Path) -> None:
    rows = [
        {"name": f"layer.{i}.{'x' * 60}", "op_type": "Conv", "size": 9, "shed": 9.0 + 1 / (i + 1)}
        | {"control": 0.0, "net_shed": 9.0}
        for i in range(5000)
    ]
    text = build_report(
        write(tmp_path / "probe", probe(tensors={"magnitude": rows, "random": rows}))
    )
    assert len(text.encode()) < 6_000_000
    assert len(Page(text).plots()["where-0"]["figure"]["data"][0]["x"]) == 20


def test_a_folder_of_both_kinds_gives_the_page_of_the_run(tmp_path: Path) -> None:
    folder = write(tmp_path / "probe", probe())
    assert report_path(folder) == folder / "cascade.html"
    (folder / "run.json").write_text('{"status": "running"}')
    (folder / "recipe.toml").write_text("")
    assert report_path(folder) == folder / "report.html"
    assert "Pruning run" in build_report(folder)


def test_numbers_in_words() -> None:
    assert signed(-0.5, 2) == "\u22120.50"
    assert signed(0.0, 1) == "+0.0"
    assert signed_interval(-1.0, 2.0, 1) == "[\u22121.0, +2.0]"
    assert signed_interval(None, None) == "none from one seed"
    assert (share(0.2), share(0.125)) == ("20\u00a0%", "12.5\u00a0%")
    assert (amount(1234.5), amount(-0.25)) == ("1\u202f234", "\u22120.2")


def test_long_names_are_told_apart_by_what_they_do_not_share() -> None:
    layers = [f"/backbone/stage{i}/block{j}/Conv.weight" for i in (1, 2) for j in (0, 10)]
    shortened = ["…stage1/block0…", "…stage1/block10…", "…stage2/block0…", "…stage2/block10…"]
    assert distinct(layers, 22) == shortened
    assert distinct(layers, 60) == layers
    assert distinct(["abcdefgh"], 5) == ["ab…gh"]


@needs_chromium
@pytest.mark.parametrize(("scheme", "dark"), [(0, True), (1, False)])
def test_every_plot_draws_in_both_colour_schemes(tmp_path: Path, scheme: int, dark: bool) -> None:
    hostile = probe(model=HOSTILE[0], notes=HOSTILE)
    page, picture = tmp_path / "cascade.html", tmp_path / "cascade.png"
    write_probe_report(write(tmp_path / "probe", hostile), page)
    options = [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1100,3600"]
    dom, console = browse(page, tmp_path / "profile", *options, "--dump-dom")
    assert console == []
    drawn = Page(dom)
    assert drawn.all("html", data_plots="drawn")
    for key in Page(page.read_text(encoding="utf-8")).plots():
        content = dom.split(f'id="plot-{key}"')[1].split("</figure>")[0]
        assert content.count('class="main-svg"') >= 1, key
    browse(page, tmp_path / "profile", *options, f"--screenshot={picture}")
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.int64)
    brightness = np.median(pixels)
    assert brightness < 60 if dark else brightness > 200
    for color in (
        ((0x56, 0xB4, 0xE9), (0xF0, 0xA0, 0x30)) if dark else ((0, 0x72, 0xB2), (0xD0, 0x74, 8))
    ):
        assert (np.abs(pixels - np.array(color)).sum(axis=2) < 12).sum() > 200
