"""Which commands there are, and how they end."""

from __future__ import annotations

import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from lightning_compress.cli import compare, inspect, large_then_compress, report
from lightning_compress.cli.output import complain
from lightning_compress.core import CompressionError, MissingExtraError

FINE, NOT_MEASURED, UNUSABLE = 0, 1, 2

_EXIT_CODES = """exit codes:
  0  done
  1  done, but something could not be measured; what, and why, is said
  2  bad usage, a file that cannot be read, or a package that is not installed"""

_EXAMPLES = """examples:
  lightning-compress report lightning_logs/version_3
  lightning-compress compare dense.onnx small.onnx --plot sizes.svg
  lightning-compress inspect last.ckpt --all
  lightning-compress large-then-compress --config sizes.yaml --dry-run"""


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        summary: for the list of commands.
        description: above its options.
        examples: below them, one a line.
        add_arguments: puts its options on a parser.
        run: takes them, and returns the exit code.
    """

    summary: str
    description: str
    examples: str
    add_arguments: Callable[[Any], None]
    run: Callable[[Any], int]


# A further command is one entry here.
COMMANDS = {
    "report": Command(report.SUMMARY, report.DESCRIPTION, report.EXAMPLES, report.add_arguments, report.run),
    "compare": Command(compare.SUMMARY, compare.DESCRIPTION, compare.EXAMPLES, compare.add_arguments, compare.run),
    "inspect": Command(inspect.SUMMARY, inspect.DESCRIPTION, inspect.EXAMPLES, inspect.add_arguments, inspect.run),
    "large-then-compress": Command(
        large_then_compress.SUMMARY,
        large_then_compress.DESCRIPTION,
        large_then_compress.EXAMPLES,
        large_then_compress.add_arguments,
        large_then_compress.run,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the program's name; by default what the process was given.

    Returns:
        The exit code: 0 done, 1 done but something could not be measured, 2 bad usage or unreadable input.

    Raises:
        SystemExit: after ``--help`` and ``--version`` with 0, after bad usage with 2.
    """
    try:
        given = _parser().parse_args(arguments)
        return COMMANDS[given.subcommand].run(given[given.subcommand])
    except BrokenPipeError:
        # `lightning-compress inspect x | head`: nobody reads on. Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except (CompressionError, OSError) as error:
        complain(str(error))
        return UNUSABLE
    except KeyboardInterrupt:
        complain("interrupted")
        return 130  # what shells expect after Ctrl-C


def _parser() -> Any:
    try:
        import rich  # noqa: F401 (of the same extra: better told now than in the middle)
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise MissingExtraError(
            f"the command line needs the package {error.name}: pip install 'lightning-compress[cli]'."
        ) from error
    parser = ArgumentParser(
        prog="lightning-compress",
        description="What a compression of a PyTorch Lightning model did, gained and lost.",
        epilog=f"{_EXAMPLES}\n\n{_EXIT_CODES}",
        formatter_class=RawDescriptionHelpFormatter,
        version=metadata.version("lightning-compress"),
    )
    commands = parser.add_subcommands(title="commands", metavar="COMMAND", description="COMMAND --help tells more")
    for name, command in COMMANDS.items():
        options = ArgumentParser(
            description=command.description,
            epilog=f"examples:\n{command.examples}\n\n{_EXIT_CODES}",
            formatter_class=RawDescriptionHelpFormatter,
        )
        command.add_arguments(options)
        commands.add_subcommand(name, options, help=command.summary)
    return parser
