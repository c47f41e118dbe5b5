"""The page that puts several runs side by side."""

from pathlib import Path
from typing import Any

import pytest

from onnxprune.errors import UsageError
from onnxprune.validate.compare_report import build_comparison, write_comparison

from .pages import HOSTILE, Page, browse, needs_chromium
from .test_report import results, write_run


def outcome(top1: float, sparsity: float, speed: float | None, **changes: Any) -> dict[str, Any]:
    """Results of a run that reached these."""
    value = results(sparsity=sparsity, **changes)
    value["validation"]["pruned"]["top1"] = top1
    if speed is None:
        return value | {"latency": None}
    value["latency"]["models"][1]["speedup"] = {
        "ratio": speed,
        "low": speed - 0.02,
        "high": speed + 0.02,
    }
    return value


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """`b` is beaten in every respect by `a`; `c` is the sparsest, `d` the fastest."""
    recipe = '[sparsity]\ntarget = {}\nmethod = "gmp"\n[finetune]\nlr = 0.1\n'
    values = {
        "a": outcome(0.93, 0.8, 1.1),
        "b": outcome(0.92, 0.7, 1.0),
        "c": outcome(0.90, 0.95, 1.05, method="cascade-gmp"),
        "d": outcome(0.91, 0.6, 1.6, method="one-shot"),
    }
    return [
        write_run(tmp_path / name, value, recipe=recipe.format(value["sparsity"]))
        for name, value in values.items()
    ]


def rows(page: Page) -> dict[str, str]:
    """The first table's rows by the run's name."""
    return {text.split()[0]: text for text in page.texts("tr")}


def test_fronts_tiles_and_table(runs: list[Path]) -> None:
    page = Page(build_comparison(runs).page)
    tiles = {attrs["data-key"]: text for attrs, text in page.all("div") if "data-key" in attrs}
    assert "93.00\u00a0%" in tiles["best-quality"]
    assert "95.00\u00a0%" in tiles["sparsest"]
    assert "1.60\u00d7" in tiles["fastest"]
    plots = page.plots()
    front, *methods = plots["sparsity"]["figure"]["data"]
    assert (front["x"], front["y"]) == ([0.8, 0.95], [0.93, 0.9])
    assert [trace["name"] for trace in methods] == ["gmp", "cascade-gmp", "one-shot", "dense"]
    assert methods[0]["x"] == [0.8, 0.7]
    speed = plots["speed"]["figure"]["data"]
    assert (speed[0]["x"], speed[0]["y"]) == ([1.1, 1.6], [0.93, 0.91])
    assert speed[3]["error_x"]["array"] == speed[3]["error_x"]["arrayminus"] == [0.02]
    ends = {name: text.split()[-1] for name, text in rows(page).items() if name in "abcd"}
    assert ends == {"a": "yes", "b": "no", "c": "yes", "d": "yes"}
    assert "On the front, where" in " ".join(page.texts("p"))


def test_less_is_better_of_a_loss(tmp_path: Path) -> None:
    values = []
    for loss, sparsity in ((0.3, 0.8), (0.2, 0.8)):
        value = outcome(0.9, sparsity, None)
        value["validation"] = {"dense": {"loss": 0.1}, "pruned": {"loss": loss}}
        values.append(value)
    paths = [write_run(tmp_path / f"r{i}", value) for i, value in enumerate(values)]
    page = Page(build_comparison(paths).page)
    assert page.plots()["sparsity"]["figure"]["data"][0]["y"] == [0.2]
    assert "speed" not in page.plots()


def test_only_the_settings_that_differ_are_shown(runs: list[Path]) -> None:
    page = Page(build_comparison(runs).page)
    assert "0.8 0.7 0.95 0.6" in rows(page)["sparsity.target"]
    assert "finetune.lr" not in rows(page)


def test_what_keeps_runs_from_being_comparable_is_said(tmp_path: Path, runs: list[Path]) -> None:
    other = outcome(0.9, 0.8, 1.0, source_sha256="99" * 32)
    other["data"]["eval"]["digest"] = "33" * 32
    other["latency"]["environment"]["threads"] = 2
    extra = write_run(tmp_path / "other", other)
    unfinished = write_run(tmp_path / "halted", None, status="interrupted")
    words = " ".join(Page(build_comparison([*runs, extra, unfinished]).page).texts("p"))
    for part in ("different models", "different samples", "numbers of threads", "(interrupted)"):
        assert part in words
    plain = " ".join(Page(build_comparison(runs).page).texts("p"))
    for part in ("different models", "different samples", "numbers of threads", "Left out"):
        assert part not in plain


def test_runs_that_cannot_be_compared(tmp_path: Path, runs: list[Path]) -> None:
    unfinished = write_run(tmp_path / "halted", None, status="interrupted")
    empty = outcome(0.9, 0.8, 1.0) | {"validation": None}
    unmeasured = write_run(tmp_path / "unmeasured", empty)
    reasons = r"halted: it has not finished \(interrupted\); unmeasured: it was not evaluated"
    with pytest.raises(UsageError, match=rf"nothing to compare(?s:.*){reasons}"):
        build_comparison([unfinished, unmeasured])
    with pytest.raises(UsageError, match="named twice"):
        build_comparison([runs[0], runs[0].parent / "." / runs[0].name])


def test_runs_that_cannot_be_compared_do_not_keep_others_off_the_page(
    tmp_path: Path, runs: list[Path]
) -> None:
    """The metric is the one that most runs have, and not that of the first."""
    other = outcome(0.9, 0.8, 1.0)
    other["validation"]["pruned"] = {"cer": 0.1}
    cer = write_run(tmp_path / "cer", other)
    unmeasured = write_run(tmp_path / "unmeasured", outcome(0.9, 0.8, 1.0) | {"validation": None})
    comparison = build_comparison([cer, unmeasured, *runs])
    assert comparison.left_out == {
        "unmeasured": "it was not evaluated on data",
        "cer": "it has no top1, only cer",
    }
    page = Page(comparison.page)
    assert rows(page).keys() >= {"a", "b", "c", "d"}
    assert not rows(page).keys() & {"cer", "unmeasured"}
    words = page.texts("p")
    assert "Left out: unmeasured, it was not evaluated on data." in words
    assert "Left out: cer, it has no top1, only cer." in words
    alone = Page(build_comparison([runs[0], unmeasured]).page)
    assert "1 finished run is compared by" in " ".join(alone.texts("p"))


@needs_chromium
def test_the_page_draws_in_a_browser(tmp_path: Path, runs: list[Path]) -> None:
    hostile = outcome(0.9, 0.85, 1.2, method=HOSTILE[0], pattern=HOSTILE[1], output=HOSTILE[2])
    page = tmp_path / "comparison.html"
    write_comparison([*runs, write_run(tmp_path / "hostile <b>", hostile)], page)
    dom, console = browse(page, tmp_path / "profile", "--dump-dom", "--window-size=1280,900")
    assert console == []
    drawn = Page(dom)
    assert drawn.all("html", data_plots="drawn")
    assert drawn.texts("title") == ["Comparison of 5 pruning runs – onnxprune report"]
    for key in ("sparsity", "speed"):
        content = dom.split(f'id="plot-{key}"')[1].split("</figure>")[0]
        assert content.count('class="main-svg"') >= 1, key
        assert content.count('class="point') >= 5, key
    assert not drawn.all("img")
    assert page.stat().st_size < 6e6


def test_runs_of_one_sparsity_stand_apart(tmp_path: Path) -> None:
    """An axis of their own width, labels that do not cover each other, and no empty column."""
    runs = [
        write_run(tmp_path / f"run{index}", outcome(0.9 + 0.001 * index, 0.8, None))
        for index in range(3)
    ]
    page = Page(build_comparison(runs).page)
    figure = page.plots()["sparsity"]["figure"]
    low, high = figure["layout"]["xaxis"]["range"]
    assert (low, high) == (pytest.approx(0.78), pytest.approx(0.82))
    assert len(set(figure["data"][1]["textposition"])) == 3
    headers = page.texts("th", scope="col")
    assert "Against dense" in headers
    assert not any("Speed" in header for header in headers)
