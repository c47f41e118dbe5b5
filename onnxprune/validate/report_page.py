"""What the pages share: one self-contained file from sections of plots, tables and words.

A page loads nothing: plotly.js, styles and data are inside, and its content security policy forbids
every connection and every script but its own two (by digest). What comes from a model, a recipe or
a machine is escaped.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from onnxprune.validate import report_format as fmt
from onnxprune.validate.report_plots import Plot, Table

_MAX_FACTS = 300


@dataclass(frozen=True)
class Group:
    """A section of a page that holds plots.

    Attributes:
        key: Anchor of the section.
        title: Its heading.
        plots: Its plots.
        pair: Whether plots stand side by side where there is room.
        texts: Paragraphs above the plots.
        beside: Tables among the plots, each with its heading.
        tables: Tables below them.
    """

    key: str
    title: str
    plots: list[Plot] = field(default_factory=list)
    pair: bool = False
    texts: list[str] = field(default_factory=list)
    beside: list[tuple[str, Table]] = field(default_factory=list)
    tables: list[tuple[str, Table]] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.plots or self.texts or self.beside or self.tables)


def render_page(template: str, groups: Sequence[Group], **values: Any) -> str:
    """A page as HTML text.

    Args:
        template: File name among the templates; it extends `page.html.j2`.
        groups: Sections with plots, for the template and for the page's script.
        values: What else the template needs.
    """
    plotly_js, report_js = _script(get_plotlyjs()), _script(_asset("report.js"))
    page = (
        _environment()
        .get_template(template)
        .render(
            policy=_policy([plotly_js, report_js]),
            css=Markup(_asset("report.css")),
            groups=groups,
            plots_json=_json_for_script([_plot_data(plot) for g in groups for plot in g.plots]),
            plotly_js=Markup(plotly_js),
            report_js=Markup(report_js),
            **values,
        )
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def present(candidates: Sequence[Plot | None]) -> list[Plot]:
    """The plots that there are."""
    return [plot for plot in candidates if plot is not None]


def facts_table(rows: Sequence[tuple[str, str]]) -> Table:
    """A table of items and their values, without a header."""
    return Table(["Item", "Value"], [list(row) for row in rows[:_MAX_FACTS]], facts=True)


def _plot_data(plot: Plot) -> dict[str, Any]:
    return {
        "key": plot.key,
        "alternative": plot.alternative,
        "figure": plot.figure,
        "height_px": plot.height_px,
        "choices": plot.choices,
        "chosen": plot.chosen,
    }


def _json_for_script(value: Any) -> Markup:
    """JSON that cannot end or open a script element, whatever strings it holds."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _script(text: str) -> str:
    """Script text as a browser hashes it: one kind of line end, no early end of the element."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in text.lower():
        raise ValueError("a script of the page contains `</script`")
    return text


def _policy(scripts: Sequence[str]) -> str:
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts
    ]
    sources = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    folder = resources.files("onnxprune.validate") / "templates"
    return (folder / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "count": fmt.count,
        "percent": fmt.percent,
        "shorten": fmt.shorten,
        "filled": lambda tensor: round(100 * min(1.0, max(0.0, tensor.sparsity)), 1),
    }
    environment.filters.update(filters)
    return environment
