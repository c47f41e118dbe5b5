"""`onnxprune init`: a commented recipe for a model."""

from pathlib import Path

import click

from onnxprune.cli import common


@click.command("init")
@click.argument("model")
@click.option(
    "-o", "--output", metavar="FILE", help="The recipe to write.  [default: standard output]"
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@common.json_option
def command(model: str, output: str | None, force: bool, as_json: bool) -> None:
    """Write a recipe for MODEL in which every key is explained.

    \b
    Example:
      onnxprune init model.onnx -o recipe.toml
    """
    from onnxprune.errors import OutputError
    from onnxprune.model import atomic_write_text, check_writable, read
    from onnxprune.starter_recipe import starter_recipe

    text = starter_recipe(read(model))
    if output is None:
        if as_json:
            common.print_json({"output": None, "recipe": text})
        else:
            click.echo(text, nl=False)
        return
    if Path(output).exists() and not force:
        raise OutputError(
            "the file exists already", where=output, remedy="name another file, or pass --force"
        )
    check_writable(output)
    atomic_write_text(output, text)
    if as_json:
        common.print_json({"output": output, "recipe": text})
