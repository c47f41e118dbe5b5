"""`onnxprune check`: the gate for artifacts in CI."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli import common

if TYPE_CHECKING:
    from onnxprune.validate.gate import GateResult

_COLUMNS = ("check", "status", "required", "measured", "message")
_STYLES = {"pass": "green", "fail": "bold red", "error": "bold red", "skipped": "bold yellow"}


@click.command("check")
@click.argument("model")
@click.option("--policy", metavar="FILE", required=True, help="What MODEL has to keep to (TOML).")
@click.option("--baseline", metavar="DENSE", help="The dense model that MODEL was made from.")
@common.data_option(required=False)
@common.recipe_option
@click.option("--junit", metavar="FILE", help="Write the result as JUnit XML.")
@click.option("--markdown", metavar="FILE", help="Write the result as Markdown.")
@click.option("--html", metavar="FILE", help="Write the result as a page.")
@click.option(
    "--annotations/--no-annotations",
    default=None,
    help="Print GitHub annotations.  [default: where GITHUB_ACTIONS is true]",
)
@click.option("--shape", "shapes", multiple=True, metavar="NAME=SIZES", help="As x=1,3,224,224.")
@common.threads_option
@common.provider_option
@common.allow_python_option
@common.json_option
def command(
    model: str,
    policy: str,
    baseline: str | None,
    data: str | None,
    recipe: str | None,
    junit: str | None,
    markdown: str | None,
    html: str | None,
    annotations: bool | None,
    shapes: tuple[str, ...],
    threads: int | None,
    provider: str | None,
    allow_python: bool,
    as_json: bool,
) -> int:
    """Check MODEL against a policy, and exit with 0 only if every demand of it was met.

    A demand that could not be checked is never a pass. Exit codes: 0 passed, 1 failed; where
    nothing failed but something could not be used: 2 policy or options, 3 a model, 4 data.
    Reports are written in all of these cases. --shape, --threads and --provider hold where the
    policy says nothing.

    \b
    Example:
      onnxprune check pruned.onnx --policy policy.toml --baseline model.onnx --data photos/val
    """
    from onnxprune.checking import check
    from onnxprune.files import atomic_write_text, check_writable
    from onnxprune.validate.gate_report import annotations as annotation_lines
    from onnxprune.validate.gate_report import junit_xml
    from onnxprune.validate.gate_report import markdown as markdown_text

    for path in (junit, markdown, html):
        if path is not None:
            check_writable(path)
    console = common.message_console()
    with console.status("checking") as status:
        result = check(
            model,
            policy,
            baseline=baseline,
            data=data,
            recipe=recipe,
            provider=provider,
            threads=threads,
            shapes=common.parse_shapes(shapes),
            allow_python=allow_python,
            on_check=lambda name: status.update(f"checking {name}"),
        )
    if junit is not None:
        atomic_write_text(junit, junit_xml(result))
    if markdown is not None:
        atomic_write_text(markdown, markdown_text(result))
    if html is not None:
        from onnxprune.validate.result_report import write_gate_report

        write_gate_report(result, Path(html))
    if as_json:
        common.print_json(result.to_json())
        for check_result in result.checks:
            if check_result.status == "error":
                click.echo(f"error: {common.printable(check_result.message)}", err=True)
    else:
        _print_table(result)
    if annotations if annotations is not None else os.environ.get("GITHUB_ACTIONS") == "true":
        for line in annotation_lines(result):
            click.echo(line, err=as_json)
    return result.exit_code


def _print_table(result: "GateResult") -> None:
    from rich.table import Column, Table
    from rich.text import Text

    from onnxprune.validate.gate_report import summary, value_text

    columns = (Column(name, overflow="fold") for name in _COLUMNS)
    table = Table(*columns, title=result.model)
    for check in result.checks:
        table.add_row(
            check.name,
            Text(check.status, style=_STYLES[check.status]),
            value_text(check.required),
            value_text(check.measured),
            check.message,
        )
    console = common.output_console()
    console.print(table)
    verdict = "passed" if result.passed else "DID NOT PASS"
    console.print(f"{result.model}: {verdict}. {summary(result)}")
