"""`mlxchat inspect cost`: what a context costs in operations, bytes and seconds on this machine."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.inspect.looking import Json, Subject, look, look_options, show

if TYPE_CHECKING:
    from mlxchat.lens.cost import Cost, Rates

CONTEXTS = (1024, 4096, 32_768, 100_000)


@click.command()
@click.option(
    "--context",
    "contexts",
    type=click.IntRange(1, 100_000_000),
    multiple=True,
    metavar="N",
    help="A context of N tokens; may be given more than once.",
)
@look_options()
def cost(contexts: tuple[int, ...], model: str | None, adapter: str | None, **out: Any) -> None:
    """Show what long contexts cost: operations, KV bytes, and seconds on this machine.

    The seconds follow from short prefills and decodes that are measured now.
    """

    def work(subject: Subject) -> "tuple[list[Cost], Rates, int, str]":
        from mlxchat.lens.cost import compute_cost, kv_itemsize, measure_rates, need_native

        native = need_native(subject.model)
        sizes = sorted({*(contexts or CONTEXTS)})
        costs = [compute_cost(native.config, n, kv_itemsize(native)) for n in sizes]
        return (
            costs,
            measure_rates(native, check=subject.check),
            native.info.max_context,
            subject.name,
        )

    costs, rates, limit, name = look(model, adapter, work)
    from mlxchat.cli.inspect import render_shape

    show(
        to_json(costs, rates, limit),
        lambda console: render_shape.make_cost_view(costs, rates, limit, name),
        lambda: render_shape.make_cost_page(costs, rates, limit, name),
        **out,
    )


def to_json(costs: "list[Cost]", rates: "Rates", limit: int) -> Json:
    """Returns what `--json` prints."""
    return {
        "contexts": [
            {
                "tokens": c.num_tokens,
                "attention_flops": c.attention,
                "projection_flops": c.projections,
                "feed_forward_flops": c.feed_forward,
                "head_flops": c.head,
                "total_flops": c.total,
                "kv_bytes": c.kv_bytes,
                "prefill_s": rates.prefill_s(c),
                "decode_token_s": rates.decode_token_s(c),
                "fits": c.num_tokens <= limit,
            }
            for c in costs
        ],
        "max_context": limit,
        "rates": asdict(rates),
    }
