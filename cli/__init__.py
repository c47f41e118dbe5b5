"""The command line. Each command is one module, imported only when it is asked for."""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

from onnxprune.errors import OnnxpruneError
from onnxprune.version import __version__

COMMANDS = (
    *("doctor", "inspect", "init", "prune", "cascade", "compile", "evaluate", "bench", "check"),
    "report",
)
EXIT_USAGE, EXIT_INTERRUPTED, EXIT_INTERNAL = 2, 5, 70


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"onnxprune.cli.{cmd_name}")
        command: click.Command = module.command
        return command


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done or passed, 1 a gate failed, 2 usage or recipe error or unwritable "
    "output, 3 bad model, 4 bad data, 5 interrupted (resumable), "
    "70 internal error.",
)
@click.version_option(__version__, prog_name="onnxprune")
def root() -> None:
    """Prune production ONNX models while fine-tuning them, and prove the result.

    \b
    Example:
      onnxprune init model.onnx -o recipe.toml
      onnxprune prune model.onnx -o pruned.onnx --recipe recipe.toml --data photos/
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code; see `onnxprune --help`.

    One of several processes ends without taking itself apart. With threads that have talked to
    other processes, this fails now and then, and a launcher would start the finished run again.
    """
    code = run(arguments)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: The command line without the program's name; by default that of the process.
    """
    try:
        result = root.main(
            list(arguments) if arguments is not None else None, "onnxprune", standalone_mode=False
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except OnnxpruneError as error:
        from onnxprune.cli.common import printable

        click.echo(f"error: {printable(str(error))}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("ONNXPRUNE_DEBUG"):
            traceback.print_exc()
        click.echo(
            f"internal error: {type(error).__name__}: {error}\n"
            "  remedy: please report this; ONNXPRUNE_DEBUG=1 shows where it happened",
            err=True,
        )
        return EXIT_INTERNAL
