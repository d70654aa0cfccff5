"""The command `ultr`. Each subcommand is a module of its own, imported when it is called."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ultr import __version__, compilation_cache, stopping
from ultr.errors import UltrError
from ultr.exhaustion import address_space, memory_problem
from ultr.locks import locked
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


# Command -> what takes less memory.
LOWER = {
    "demo": "Lower --sessions or --queries",
    "prepare": "Lower --memory-limit, beyond which it works on disk",
    "simulate": "Lower --ranks, or take part of the lists with --split",
    "diagnose": "Lower --ranks or --pairs, or take part of the log with --split",
    "propensity": "Lower --ranks or --bins, or take part of the log with --split",
    "train": "Lower --batch-size or --hidden, or share rows of a table with --rows",
    "evaluate": "Take part of the data with --split, or fewer --metrics",
    "compare": "Lower --jobs, or the sizes of logs and models in the study",
}
# Command -> what it leaves when it is interrupted, where it does not say so itself.
KEPT = {
    "compare": "The runs that had ended are kept in --out, and the same command makes the others",
    "prepare": "Nothing was written to --out",
    "simulate": "Nothing was written to --out",
    "demo": "Nothing was written to --out",
}
# Address space in MiB, as measured, below which libraries end the process, or wait for threads that never started.
START_MIB = 1536
START_RUNTIME_MIB = 2304
STARTS_RUNTIME = ("demo", "simulate", "train", "evaluate", "compare")


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
    least = START_RUNTIME_MIB if click.get_current_context().invoked_subcommand in STARTS_RUNTIME else START_MIB
    if not address_space(least):
        raise MemoryError(f"there are less than {least} MiB of address space, which it takes to start")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits; for bad use or input with one line on standard error and code 2."""
    with stopping.on_signals(for_good=arguments is None):
        code, who, message = _run(arguments)
    if message:  # said here, where the error has gone with all that it held: memory may be short
        click.echo(f"{who}: error: {' '.join(message.split())}" if who else message, err=True)
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> tuple[int, str, str]:
    """Runs the command line; returns its exit code and, where it failed, who failed and why."""
    try:
        code = cli.main(arguments, prog_name="ultr", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        return 2, "", error.format_message()
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        return 2, context.command_path if context else "ultr", error.format_message()
    except click.Abort as error:
        stop = error.__cause__
        code = stop.exit_code if isinstance(stop, stopping.Stopped) else 130
        kept = getattr(stop, "__notes__", ()) or [_what_was_kept(arguments)]
        return code, "ultr", ". ".join(["interrupted", *kept])
    except UltrError as error:
        return 2, "ultr", str(error)
    except Exception as error:
        if (problem := memory_problem(error)) is not None:
            return 2, "ultr", f"memory ran out ({problem}). {_what_to_lower(arguments)}"
        if not isinstance(error, OSError):
            raise
        return 2, "ultr", f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return code if isinstance(code, int) else 0, "", ""


def _what_was_kept(arguments: Sequence[str] | None) -> str:
    """Says what an interrupted command leaves that says nothing itself."""
    return KEPT.get(_command_in(arguments), "Nothing was written")


def _command_in(arguments: Sequence[str] | None) -> str:
    return next((a for a in (sys.argv[1:] if arguments is None else arguments) if a in COMMANDS), "")


def _what_to_lower(arguments: Sequence[str] | None) -> str:
    given = _command_in(arguments)
    lower = f"{LOWER[given]}, or give" if given else "Give"
    return f"{lower} the process more memory (`ulimit -v`, the limit of the container)"


def hold(out: Path, *, inside: bool = False) -> None:
    """Keeps other processes from writing to --out until the command has ended.

    Args:
      out: the folder.
      inside: whether it is filled where it stands (`ultr.locks.locked`).

    Raises:
      ConfigError: another process is writing there.
    """
    click.get_current_context().with_resource(locked(out, inside=inside))


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
