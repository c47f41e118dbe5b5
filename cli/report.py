"""`onnxprune report`: one self-contained page."""

from pathlib import Path
from typing import Any

import click

from onnxprune.cli import common


@click.command("report")
@click.argument("sources", nargs=-1, required=True, metavar="RUN_DIR... | RESULT.json")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="The HTML file to write.  [default for one: report.html or cascade.html in RUN_DIR]",
)
@click.option(
    "--check",
    metavar="RESULT.json",
    help="What `check --json` printed of the run's model.  [default: check.json in RUN_DIR, if it "
    "is there]",
)
@common.json_option
def command(sources: tuple[str, ...], output: str | None, check: str | None, as_json: bool) -> None:
    """Write what a run did and found as one HTML page without external parts.

    RUN_DIR is the run directory of `prune`, or the folder that `cascade --run-dir` wrote. Several
    run directories of `prune` give a page that compares their accuracy, sparsity and speed; one
    that has not finished or was not evaluated is named and left out.
    RESULT.json is what `bench --json` or `check --json` printed.

    \b
    Examples:
      onnxprune report pruned.run -o report.html
      onnxprune report pruned.run --check gate.json
      onnxprune report probe
      onnxprune report gmp.run cascade.run -o comparison.html
      onnxprune report bench.json -o bench.html
    """
    from onnxprune.errors import UsageError
    from onnxprune.model import check_writable
    from onnxprune.validate import report_path, write_comparison, write_report, write_result_report

    paths = [Path(source) for source in sources]
    is_result = len(paths) == 1 and paths[0].is_file()
    if check is not None and (is_result or len(paths) > 1):
        raise UsageError(
            "--check goes with the page of one run",
            got=f"{len(paths)} runs" if len(paths) > 1 else "a result file",
            remedy="name one run directory",
        )
    if output is not None:
        check_writable(output)
    elif is_result or len(paths) > 1:
        what = "the page of a result" if is_result else "a comparison"
        raise UsageError(f"{what} needs a file to go to", remedy="name it with -o")
    else:
        output = str(report_path(paths[0]))
    left_out: dict[str, str] = {}
    if is_result:
        write_result_report(paths[0], Path(output))
    elif len(paths) > 1:
        left_out = write_comparison(paths, Path(output))
    else:
        write_report(paths[0], Path(output), check=None if check is None else Path(check))
    for name, reason in left_out.items():
        click.echo(f"left out: {common.printable(name)}: {common.printable(reason)}", err=True)
    if as_json:
        facts: dict[str, Any] = {"output": output, "size_bytes": Path(output).stat().st_size}
        common.print_json(facts | ({"left_out": left_out} if len(paths) > 1 else {}))
    else:
        click.echo(f"{output} ({common.size_text(Path(output).stat().st_size)})", err=True)
