"""What commands share: options, recipes with overrides, output."""

import json
import os
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from onnxprune.recipe import Recipe

F = TypeVar("F", bound=Callable[..., Any])

PIPE_WIDTH = 140
"""Columns of tables where there is no terminal that says how wide it is."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on standard output."
)
recipe_option = click.option("--recipe", metavar="FILE", help="A recipe (TOML).")
threads_option = click.option("--threads", type=click.IntRange(1), help="CPU threads.")
provider_option = click.option(
    "--provider", metavar="NAME", help="ONNX Runtime execution provider: cpu, cuda, or a full name."
)
allow_python_option = click.option(
    "--allow-python", is_flag=True, help="Let `python:` data specs and losses run code."
)
set_option = click.option(
    "--set",
    "settings",
    metavar="TABLE.KEY=VALUE",
    multiple=True,
    help="Override any key of the recipe; VALUE is TOML. Can be repeated.",
)


def data_option(*, required: bool) -> Callable[[F], F]:
    """The `--data SPEC` option."""
    return click.option(
        "--data",
        metavar="SPEC",
        required=required,
        help="Class folders, .npz, folder of .npz, torchvision:NAME?root=…, or "
        "python:package.module:function.",
    )


def load_recipe(
    path: str | None,
    settings: tuple[str, ...] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> "Recipe":
    """The recipe file, or the defaults, with `--set` and other options laid over it."""
    from onnxprune.recipe import Recipe
    from onnxprune.toml import merged

    extra: dict[str, dict[str, Any]] = {}
    for setting in settings:
        table, key, value = _parse_setting(setting)
        extra.setdefault(table, {})[key] = value
    combined = merged(extra, overrides or {})
    if path is None:
        return Recipe.from_dict(combined, where="the command line")
    return Recipe.from_toml(path, combined)


def _parse_setting(setting: str) -> tuple[str, str, Any]:
    name, equals, text = setting.partition("=")
    table, dot, key = name.strip().partition(".")
    if not (equals and dot and table and key):
        raise UsageError(
            "--set takes TABLE.KEY=VALUE", got=setting, expected="such as finetune.lr=0.01"
        )
    try:
        return table, key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return table, key, text.strip()


def parse_shapes(shapes: tuple[str, ...]) -> dict[str, list[int]]:
    """`("x=1,3,224,224",)` as `{"x": [1, 3, 224, 224]}`."""
    parsed = {}
    for text in shapes:
        name, _, dims = text.rpartition("=")
        sizes = dims.split(",")
        if not name or not all(size.strip().isdigit() and int(size) > 0 for size in sizes):
            raise UsageError(
                "--shape takes NAME=SIZES", got=text, expected="such as --shape x=1,3,224,224"
            )
        parsed[name] = [int(size) for size in sizes]
    return parsed


def parse_pairs(option: str, pairs: tuple[str, ...]) -> dict[str, str]:
    """`("key=value",)`, as an option takes them, as `{"key": "value"}`."""
    parsed = {}
    for text in pairs:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UsageError(f"{option} takes KEY=VALUE", got=text)
        parsed[key] = value
    return parsed


def print_json(value: object) -> None:
    """Print JSON, alone, to standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def is_main_process() -> bool:
    """Whether this is the process that speaks, of those that `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


def output_console() -> "Console":
    """Standard output for people: coloured and as wide as the terminal, plain text in a pipe."""
    return _console(stderr=False)


def message_console() -> "Console":
    """Standard error, for progress and messages."""
    return _console(stderr=True)


def printable(text: str) -> str:
    """Text whose control characters do not reach the terminal: names in a model may be hostile.

    Others are marked that turn the direction of text, which can make a line read otherwise.
    """
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _console(*, stderr: bool) -> "Console":
    """A console that takes brackets in names as they are, and breaks no line of text in a pipe."""
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        """Strings, in tables too, are printed by way of `printable`."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options)

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return PlainConsole(stderr=stderr, width=width, highlight=False, markup=False, soft_wrap=True)


def percent(value: float | None, digits: int = 2) -> str:
    """A share in [0, 1] as per cent."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def size_text(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def duration_text(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
