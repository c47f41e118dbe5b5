"""`onnxprune report`: one self-contained page."""

from pathlib import Path

import click

from onnxprune.cli import common


@click.command("report")
@click.argument("run_dir")
@click.option("-o", "--output", required=True, metavar="FILE", help="The HTML file to write.")
@common.json_option
def command(run_dir: str, output: str, as_json: bool) -> None:
    """Write what a run did and found as one HTML page without external parts.

    \b
    Example:
      onnxprune report pruned.run -o report.html
    """
    from onnxprune.model import check_writable
    from onnxprune.validate import write_report

    check_writable(output)
    write_report(Path(run_dir), Path(output))
    if as_json:
        common.print_json({"output": output, "size_bytes": Path(output).stat().st_size})
    else:
        click.echo(f"{output} ({common.size_text(Path(output).stat().st_size)})", err=True)
