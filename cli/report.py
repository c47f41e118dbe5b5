"""`onnxprune report`: one self-contained page."""

from pathlib import Path

import click

from onnxprune.cli import common


@click.command("report")
@click.argument("run_dir")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="The HTML file to write.  [default: report.html or cascade.html in RUN_DIR]",
)
@common.json_option
def command(run_dir: str, output: str | None, as_json: bool) -> None:
    """Write what a run did and found as one HTML page without external parts.

    RUN_DIR is the run directory of `prune`, or the folder that `cascade --run-dir` wrote.

    \b
    Examples:
      onnxprune report pruned.run -o report.html
      onnxprune report probe
    """
    from onnxprune.model import check_writable
    from onnxprune.validate import report_path, write_report

    if output is None:
        output = str(report_path(Path(run_dir)))
    else:
        check_writable(output)
    write_report(Path(run_dir), Path(output))
    if as_json:
        common.print_json({"output": output, "size_bytes": Path(output).stat().st_size})
    else:
        click.echo(f"{output} ({common.size_text(Path(output).stat().st_size)})", err=True)
