"""`mlxchat bench`: what this machine and this version give, in llama-bench's table and beyond."""

from collections.abc import Callable
from typing import Any

import click

from mlxchat.cli.failures import INTERRUPTED
from mlxchat.cli.options import ADAPTER_OPTION, MODEL_OPTION
from mlxchat.cli.resume import complete_conversation
from mlxchat.errors import MlxchatError, UsageError

# Ends a test: all of them together stay below a minute on two slow cores.
BUDGET_S = 4.0
COMPARED_ROUNDS = 2
_OF_REPLAY = frozenset(("model", "adapter", "repetitions", "form"))


class Numbers(click.ParamType):  # type: ignore[type-arg]  # not generic in older click
    """Whole numbers with commas between them.

    Args:
        least: The smallest that is allowed.
    """

    name = "numbers"

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Reads `512` or `0,4096`."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or min(numbers) < self.least or max(numbers) >= 1 << 30:
            self.fail(
                f"{value!r} is not allowed; give whole numbers from {self.least} on, with commas"
                " between them, such as 512 or 0,4096",
                param,
                ctx,
            )
        return numbers


def _choices(known: dict[str, Any]) -> Callable[..., tuple[Any, ...]]:
    """Makes the callback of an option that takes some of a few words, with commas."""

    def read(context: click.Context, param: click.Parameter, text: str) -> tuple[Any, ...]:
        parts = text.split(",")
        if not set(parts) <= known.keys():
            words = ", ".join(known)
            raise click.BadParameter(f"{text!r} is not allowed; give some of {words}, with commas")
        return tuple(dict.fromkeys(known[part] for part in parts))

    return read


@click.command()
@click.argument("file", required=False)
@MODEL_OPTION
@ADAPTER_OPTION
@click.option(
    "-p", "prompts", type=Numbers(0), default="512", metavar="N,..", help="Prefill N tokens."
)
@click.option(
    "-n", "answers", type=Numbers(0), default="128", metavar="N,..", help="Decode N tokens."
)
@click.option(
    "-d",
    "depths",
    type=Numbers(0),
    default="0,4096",
    metavar="N,..",
    help="With N tokens in the cache before.",
)
@click.option(
    "-r", "repetitions", type=click.IntRange(1), metavar="N", help="Repeat each test N times."
)
@click.option(
    "--chunk",
    "chunks",
    type=Numbers(1),
    metavar="N,..",
    help="Prefill in chunks of N tokens; without it they follow the measured rate.",
)
@click.option(
    "--kv-bits",
    callback=_choices({"none": None, "8": 8, "4": 4}),
    default="none",
    metavar="N,..",
    help="Hold keys and values in N bits: 8, 4, or none, which holds them as they are.",
)
@click.option(
    "--speculate",
    callback=_choices({"off": "", "lookup": "lookup"}),
    default="off",
    metavar="WAY,..",
    help="Decode with prompt lookup: lookup, or off.",
)
@click.option(
    "--budget",
    "budget_s",
    type=click.FloatRange(0),
    default=BUDGET_S,
    metavar="S",
    help="End each test after S seconds and say so; 0 never does.",
)
@click.option(
    "-o",
    "form",
    type=click.Choice(["md", "csv", "json", "jsonl", "sql"]),
    default="md",
    metavar="FORM",
    help="The format: md (tables for people), csv, json, jsonl or sql.",
)
@click.option(
    "--against",
    type=click.Choice(["mlx-lm"]),
    metavar="NAME",
    help="Measure mlx-lm on the same weights too, A B A B, and print ratios.",
)
@click.option(
    "--no-openblas", is_flag=True, help="Linux CPU: leave MLX the BLAS that it brings along."
)
@click.option(
    "--replay",
    metavar="CONVERSATION",
    shell_complete=complete_conversation,
    help="Measure the first token of each turn of a stored conversation again.",
)
@click.option(
    "--baseline",
    type=click.Choice(["save", "check"]),
    metavar="MODE",
    help="`save` what is measured to FILE, or `check` against it: exit 1 where it got slower.",
)
@click.pass_context
def bench(context: click.Context, /, file: str | None, replay: str | None, **params: Any) -> int:
    """Measure speed and memory; FILE holds a --baseline."""
    if file is not None and params["baseline"] is None:
        raise UsageError(
            f"{file!r} would be the FILE of a --baseline; a model goes after -m, or give --baseline"
            " save or check too"
        )
    typed = click.core.ParameterSource.COMMANDLINE
    given = {name for name in params if context.get_parameter_source(name) is typed}
    if replay is not None:
        other = [p.opts[-1] for p in context.command.params if p.name in given - _OF_REPLAY]
        if other:
            raise UsageError(
                f"--replay takes -m, --adapter, -r and -o alone; leave {', '.join(other)} out"
            )
        from mlxchat.cli.bench_replay import replay_conversation

        return replay_conversation(replay, params)
    if params["baseline"] is not None:
        if params["against"] is not None:
            raise UsageError("--baseline measures mlxchat alone; leave --against out")
        from mlxchat.cli.bench_baseline import check_baseline, save_baseline

        if params["baseline"] == "save":
            return save_baseline(file, params)
        return check_baseline(file, given, params)
    return _bench(params)


def _bench(params: dict[str, Any]) -> int:
    from mlxchat.cli.bench_run import Measurement

    peers = () if params["against"] is None else (params["against"],)
    measurement = Measurement(params, ("mlxchat", *peers), COMPARED_ROUNDS if peers else 1)
    try:
        is_stopped = measurement.measure()
    except MlxchatError:
        if measurement.has_samples:  # a process failed; what the others gave is not lost
            measurement.tell(params["form"])
        raise
    if is_stopped and not measurement.has_samples:
        click.echo("Stopped before anything was measured.", err=True)
        return INTERRUPTED
    measurement.tell(params["form"])
    if is_stopped:
        click.echo("Stopped; the figures above are what was measured by then.", err=True)
        return INTERRUPTED
    return 0
