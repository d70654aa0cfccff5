"""The command `ultr`. Each subcommand is a module of its own, imported when it is called."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ultr import __version__, compilation_cache
from ultr.errors import UltrError
from ultr.text import did_you_mean

if TYPE_CHECKING:
    from ultr.study.specs import MethodSpec

COMMANDS = {
    "demo": "Make a log, train a naive ranker and a two-tower on it, and compare them.",
    "prepare": "Turn raw click logs or graded lists into a log or a collection.",
    "simulate": "Simulate a click log from graded lists.",
    "diagnose": "What can a log tell about examination, before training?",
    "propensity": "Estimate how much users examine each rank.",
    "train": "Train a click model or a two-tower ranker on a log.",
    "evaluate": "Judge a trained model on a log or a collection.",
    "compare": "Compare methods on logs over seeds, with intervals and tests.",
}


class _LazyGroup(click.Group):
    """A group that lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"ultr.cli.{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            hint = did_you_mean(args[0], COMMANDS)
            raise click.UsageError(f"unknown command '{args[0]}'{hint}; known: {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


@click.group(cls=_LazyGroup, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="ultr")
def cli() -> None:
    """Unbiased learning to rank: from a click log to a ranker freed of position and trust bias.

    Start with `ultr demo`, which needs no data. Compiled programs are kept in ~/.cache/ultr;
    ULTR_CACHE=off in the environment turns that off.
    """
    compilation_cache.turn_on()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits; for bad use or input with one line on standard error and code 2."""
    try:
        code = cli.main(arguments, prog_name="ultr", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        _fail(context.command_path if context else "ultr", error.format_message())
    except click.Abort:
        _fail("ultr", "interrupted", code=130)
    except UltrError as error:
        _fail("ultr", str(error))
    except OSError as error:
        _fail("ultr", f"{error.filename}: {error.strerror}" if error.filename else str(error))
    sys.exit(code if isinstance(code, int) else 0)


def _fail(who: str, message: str, code: int = 2) -> NoReturn:
    click.echo(f"{who}: error: {' '.join(message.split())}", err=True)
    sys.exit(code)


def output(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Prints the result alone as JSON, or the text for people."""
    click.echo(json.dumps(result, indent=1) if as_json else text)


class MethodsCommand(click.Command):
    """A command whose help lists methods by family below its options.

    Args:
      methods: the rows of `ultr.study.registry.METHODS` that are listed.
      method_options: the options of methods that the command has as its own; None: all, from a file, and described.
    """

    def __init__(
        self, *args: Any, methods: Iterable[MethodSpec], method_options: Container[str] | None, **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        self.methods, self.method_options = tuple(methods), method_options

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from ultr.study.registry import methods_by_family, options_help

        sections = methods_by_family(self.methods, options=self.method_options)
        if self.method_options is None:
            sections["Options of methods"] = options_help(self.methods)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result alone, as JSON.")
seed_option = click.option(
    "--seed", default=0, type=click.IntRange(0, 2**31 - 1), help="Seed of everything that is random."
)
ranks_option = click.option("--ranks", type=click.IntRange(min=1), help="Look at ranks 1 to this only [all].")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what stands at --out.")
