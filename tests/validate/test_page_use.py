"""Pages as people use them: by keyboard, screen reader and printer, on screens of all sizes."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxprune.validate.compare_report import write_comparison
from onnxprune.validate.report import write_report
from onnxprune.validate.result_report import write_result_report

from .browser import Tab, opened
from .pages import needs_chromium
from .test_probe_report import probe
from .test_probe_report import write as write_probe
from .test_report import costs, results, write_run
from .test_result_report import distributed, gate, layer, model

pytestmark = [needs_chromium, pytest.mark.xdist_group("pages")]

KINDS = ("run", "bench", "check", "compare", "probe")

_LONG = "encoder.layers.11.feed_forward.dense_relu_dense.wi_0.weight_with_a_name_that_is_long"
_OBSERVED = """
document.activeElement === document.body ? null : (() => {
  const element = document.activeElement;
  const style = getComputedStyle(element);
  const box = element.getBoundingClientRect();
  return {
    tag: element.localName,
    key: element.id || element.getAttribute("href") || element.getAttribute("aria-label")
      || element.textContent.trim(),
    outline: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
    inside: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
    covered: box.top < document.querySelector("nav").getBoundingClientRect().bottom - 1
      && box.height < innerHeight / 2 && !element.closest("nav, .skip"),
  };
})()
"""
"""What has the focus: its kind, a name, whether that is seen, and where on the screen it is."""

_OPERABLE = """
[...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")]
  .filter((element) => element.checkVisibility()).length
"""
_NAMELESS = """
[...document.querySelectorAll("a, button, input, select, summary, section, nav, [role], table")]
  .filter((element) => element.id !== "sorted")
  .filter((element) => {
    const labelled = element.getAttribute("aria-labelledby");
    const text = element.getAttribute("aria-label")
      || (labelled && document.getElementById(labelled)?.textContent)
      || (element.labels && [...element.labels].map((label) => label.textContent).join(""))
      || (element.localName === "table" && element.closest("[aria-label]")?.ariaLabel)
      || (element.localName !== "section" && element.textContent);
    return !text || !text.trim();
  })
  .map((element) => element.outerHTML.slice(0, 200))
"""
_BARE_CELLS = """
[...document.querySelectorAll("table")].filter((table) => {
  const heads = [...table.querySelectorAll("thead th")];
  const named = heads.length && heads.every((head) => head.scope === "col");
  const columns = table.matches(".facts") || named;
  const rows = [...table.querySelectorAll("tbody tr")]
    .every((row) => row.cells[0].localName === "th" && row.cells[0].scope === "row");
  return !(columns && rows);
}).map((table) => table.outerHTML.slice(0, 200))
"""
_CONTRAST = """
(() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => {
      v /= 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0.99) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("svg, script")) continue;
    const [a, b] = [parse(getComputedStyle(element).color), behind(element)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push([element.outerHTML.slice(0, 120), ratio]);
  }
  return found;
})()
"""
_CUT_OFF = """
[...document.querySelectorAll("main *")]
  .filter((element) => !element.closest("svg, .unseen") && element.checkVisibility())
  .filter((element) => {
    const style = getComputedStyle(element);
    const hides = style.overflowX !== "visible" || style.overflowY !== "visible";
    return (hides && (element.scrollWidth > element.clientWidth + 1
        || element.scrollHeight > element.clientHeight + 1))
      || element.getBoundingClientRect().right > innerWidth + 1;
  })
  .map((element) => element.outerHTML.slice(0, 160))
"""
"""What a printed page would not show whole."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind, with long names and everything that a page can have."""
    folder = tmp_path_factory.mktemp("pages")
    outcome = results(cost=costs())
    for side in outcome["cost"].values():
        side["layers"] += [layer(f"{_LONG}.{n}", 10_000 * n, 10, 0.1 * n) for n in range(1, 50)]
    runs = [
        write_run(folder / name, outcome | {"sparsity": s}) for name, s in (("a", 0.8), ("b", 0.9))
    ]
    bench = distributed()
    bench["models"].append(model(f"somewhere/{_LONG}.onnx", 4.0, 2.5))
    bench["models"][1]["cost"] = outcome["cost"]["pruned"]
    checks = gate("pass", "fail", "skipped")
    checks["checks"][0] |= {"name": f"sparsity.per_tensor_min.{_LONG}", "measured": "ab" * 32}
    files = {kind: folder / f"{kind}.html" for kind in KINDS}
    write_report(runs[0], files["run"])
    write_comparison(runs, files["compare"])
    write_report(write_probe(folder / "probe", probe()), files["probe"])
    for kind, value in (("bench", bench), ("check", checks)):
        (folder / f"{kind}.json").write_text(json.dumps(value))
        write_result_report(folder / f"{kind}.json", files[kind])
    return files


@pytest.fixture(scope="module", params=KINDS)
def shown(
    request: pytest.FixtureRequest,
    pages: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Tab]:
    """A page of each kind, which every test leaves in light and of the first size."""
    with opened(pages[request.param], tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def run_page(pages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """The page of a run, of which each test uses other parts."""
    with opened(pages["run"], tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def focus(tab: Tab, selector: str) -> None:
    tab.run(f"document.querySelector({json.dumps(selector)}).focus()")


def walked(tab: Tab, *, back: bool) -> list[dict[str, Any]]:
    """What the tab key stops at, from one end of the page to the other."""
    seen: list[dict[str, Any]] = []
    tab.press("Tab", shift=back)
    while (at := tab.run(_OBSERVED)) is not None and at not in seen[:1]:
        seen.append(at)
        tab.press("Tab", shift=back)
    return seen


def test_the_keyboard_reaches_everything_in_order(shown: Tab) -> None:
    forth, back = walked(shown, back=False), walked(shown, back=True)
    assert (forth[0]["tag"], forth[0]["key"]) == ("a", "#content")
    assert len(forth) == shown.run(_OPERABLE)
    assert [at["key"] for at in back] == [at["key"] for at in reversed(forth)]
    for at in [*forth, *back]:
        assert at["outline"], at
        assert at["inside"], at
        assert not at["covered"], at
    order = "[...document.querySelectorAll('[tabindex]')].filter((e) => e.tabIndex > 0).length"
    assert shown.run(order) == 0


def test_the_first_link_leads_past_the_sections(run_page: Tab) -> None:
    focus(run_page, ".skip")
    run_page.press("Enter")
    assert run_page.run("document.activeElement.id") == "content"
    run_page.press("Tab")
    assert run_page.run("document.activeElement.closest('main') !== null")


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_keys_sort_a_table(run_page: Tab, key: str) -> None:
    names = """[...document.querySelectorAll("#cost tbody th")].map((cell) => cell.textContent)"""
    state = """document.querySelector("#cost th:nth-child(4)").getAttribute("aria-sort")"""
    original = run_page.run(names)
    assert run_page.run(state) == "none"
    focus(run_page, "#cost th:nth-child(4) button")
    run_page.press(key)
    descending = run_page.run(names)
    assert run_page.run(state) == "descending"
    assert descending[0] == "stem.weight"
    assert descending[1].endswith("49")
    assert descending[-1] == "block.weight"  # its multiply-adds are not known
    told = run_page.run("document.getElementById('sorted').textContent")
    assert told == "Sorted by Multiply-adds, dense, descending."
    run_page.press(key)
    ascending = run_page.run(names)
    assert run_page.run(state) == "ascending"
    assert ascending == [*descending[-2::-1], "block.weight"]
    run_page.press(key)
    assert run_page.run(state) == "none"
    assert run_page.run(names) == original
    assert run_page.run("document.activeElement.textContent") == "Multiply-adds, dense"


def test_text_sorts_by_the_alphabet_and_one_column_at_a_time(run_page: Tab) -> None:
    names = (
        """[...document.querySelectorAll("#table .sortable tbody th")].map((c) => c.textContent)"""
    )
    focus(run_page, "#table th:nth-child(4) button")
    run_page.press("Enter")
    focus(run_page, "#table th:nth-child(1) button")
    run_page.press("Enter")
    assert run_page.run(names)[:2] == ["block.weight", "stem.weight"]
    sorted_by = """[...document.querySelectorAll("#table table:first-of-type th[aria-sort]")]
      .filter((header) => header.closest("details") === null)
      .map((header) => header.getAttribute("aria-sort"))"""
    assert run_page.run(sorted_by) == ["ascending", *["none"] * 6]


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_keys_open_and_close_the_numbers_of_a_plot(run_page: Tab, key: str) -> None:
    is_open = "document.querySelector('#training details').open"
    focus(run_page, "#training summary")
    for expected in (True, False):
        run_page.press(key)
        assert run_page.run(is_open) is expected


def test_keys_choose_a_tensor_and_its_axis(run_page: Tab) -> None:
    chosen = "document.getElementById('chosen-histogram').textContent"
    before = run_page.run(chosen)
    focus(run_page, "#choose-histogram")
    run_page.press("ArrowDown")
    assert run_page.run(chosen) != before
    focus(run_page, "#log-histogram")
    run_page.press("Space")
    assert run_page.run("document.getElementById('log-histogram').checked") is False


def test_a_table_scrolls_by_the_keyboard(run_page: Tab) -> None:
    run_page.resize(390, 800)
    focus(run_page, "#cost .table")
    for _ in range(5):
        run_page.press("ArrowRight")
    run_page.settle()
    assert run_page.run("document.querySelector('#cost .table').scrollLeft") > 0
    run_page.resize(1280, 900)


def test_screen_readers_find_landmarks_headings_and_names(shown: Tab) -> None:
    landmarks = "['header', 'nav', 'main', 'footer']"
    assert shown.run(f"{landmarks}.map((n) => document.querySelectorAll(n).length)") == [1] * 4
    assert shown.run(_NAMELESS) == []
    assert shown.run(_BARE_CELLS) == []
    levels = shown.run("[...document.querySelectorAll('h1, h2, h3')].map((h) => +h.localName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    tree = shown.call("Accessibility.getFullAXTree")["nodes"]
    images = [node for node in tree if node.get("role", {}).get("value") == "image"]
    assert len(images) == shown.run("document.querySelectorAll('.plot').length")
    assert all(len(node["name"]["value"]) > 20 for node in images)


def test_the_numbers_of_a_plot_stand_in_a_table(shown: Tab) -> None:
    figures = "[...document.querySelectorAll('figure')].filter((f) => !f.querySelector('table'))"
    without = set(shown.run(f"{figures}.map((figure) => figure.querySelector('.plot').id)"))
    elsewhere = {  # a table of its own that has more
        *("plot-tensors", "plot-cost", "plot-cost-1", "plot-speedup", "plot-quantiles"),
        *("plot-sparsity", "plot-speed", "plot-gain"),
    }
    assert without <= elsewhere


def test_texts_stand_out_from_what_is_behind_them(shown: Tab) -> None:
    """In a ratio of 4.5 to 1, as WCAG 2.2 asks in 1.4.3."""
    assert shown.run(_CONTRAST) == []
    shown.show(dark=True)
    shown.settle()
    found = shown.run(_CONTRAST)
    shown.show()
    assert found == []


def test_no_screen_scrolls_sideways(shown: Tab) -> None:
    for width in (320, 390, 768, 1100, 1920, 1280):
        shown.resize(width, 900)
        shown.settle()
        assert shown.run("document.documentElement.scrollWidth") <= width, width


def test_paper_has_every_section_whole(shown: Tab) -> None:
    headings = shown.run("[...document.querySelectorAll('h1, h2, h3')].map((h) => h.textContent)")
    printed = shown.printed().decode("latin-1")
    titles = re.findall(r"/Title \(((?:\\.|[^)\\])*)\)", printed)
    outline = {title.replace("\\", "") for title in titles}
    assert {text for text in headings if text.isascii()} <= outline
    closed = shown.run("document.querySelectorAll('details:not([open])').length")
    shown.show(dark=True, paper=True)
    shown.resize(688, 900)  # A4 less its margins
    shown.run("dispatchEvent(new Event('beforeprint'))")
    shown.settle()
    assert shown.run("document.querySelectorAll('details:not([open])').length") == 0
    cut_off = shown.run(_CUT_OFF)
    background = "getComputedStyle(document.documentElement).getPropertyValue('--page').trim()"
    assert shown.run(background) == "#fff"
    shown.run("dispatchEvent(new Event('afterprint'))")
    shown.show()
    shown.resize(1280, 900)
    assert shown.run("document.querySelectorAll('details:not([open])').length") == closed
    assert cut_off == []
