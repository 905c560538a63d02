"""The command line: `deploykit COMMAND`, each command one file of this folder, loaded when called."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from deploykit import __version__
from deploykit.cli.console import console
from deploykit.errors import DeploykitError

COMMANDS = {
    "inspect": "Say what a model file is: format, inputs, outputs, operators, parameters.",
    "convert": "Convert a model to ONNX and verify it against its own framework.",
    "compile": "Compile a model for targets; each becomes a verified bundle.",
    "verify": "Run a bundle on its golden inputs, here, and compare.",
    "run": "Run a bundle on your own inputs.",
    "profile": "Measure targets side by side and write a report.",
    "hardware": "List and show devices to deploy to; measure this machine into a new profile.",
    "env": "List, create and remove the environments of the plugins.",
    "doctor": "Say what can run on this machine, what cannot, and why.",
}

EXIT_CODES = """
\b
Exit codes:
  0 done                        7 not available on this machine
  1 a bug (see the log file)    8 the output cannot be written
  2 wrong usage                 9 the framework or runtime failed
  3 the model cannot be read   10 time limit    11 memory limit
  4 unsupported                12 crash of native code (signal)
  5 outputs disagree           13 damaged bundle
  6 environment not made      130 interrupted
"""


class LazyGroup(click.Group):
    """Commands by name; a command's file is imported only when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"deploykit.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            meant = f" (did you mean `{near[0]}`?)" if near else ""
            ctx.fail(f"no command `{args[0]}`{meant}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        # from the table, not from the commands: listing them imports none of them
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
def cli() -> None:
    """Bring a trained model from any framework to any hardware, proven and fast.

    \b
    deploykit inspect model.pt2
    deploykit convert model.pt2 -o model.onnx
    deploykit compile model.pt2 -t onnxruntime -t openvino -o bundles
    deploykit profile model.pt2 -t native -t all -o report.json
    """


def main() -> None:
    """Run the command line; the one place where errors become messages and exit codes."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command `arguments` and return its exit code."""
    try:
        result: Any = cli.main(args=arguments, prog_name="deploykit", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        console.line("interrupted: nothing was left half written")
        return 130
    except DeploykitError as error:
        console.error(error)
        return error.exit_code
    except BrokenPipeError:
        # the reader of our output went away (`| head`): nothing more to say, nor anybody to tell
        sys.stderr.close()
        return 141
    except Exception as error:
        from deploykit.cli.bug_report import write_bug_report

        log = write_bug_report(arguments)
        console.line(f"error: a bug in deploykit: {type(error).__name__}: {error}")
        console.line(f"  hint: please report it with the log file {log}")
        return 1
