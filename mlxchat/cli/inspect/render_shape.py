"""The size of a model and the cost of contexts, for people."""

import re
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from mlxchat.cli import page
from mlxchat.cli.inspect.paint import Parts, bar, heading, make_table
from mlxchat.cli.render import format_bytes, format_count, format_seconds, format_share, one_line

if TYPE_CHECKING:
    from mlxchat.lens.cost import Cost, Rates
    from mlxchat.lens.parameters import Parameter, ParameterView

_LATER_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(?!0\.)\d+\.")


def make_parameter_view(
    view: "ParameterView", model: str, *, shows_all: bool
) -> list[RenderableType]:
    """Returns the parts of the model, and its tensors."""
    total = f"{format_count(view.total_params)} parameters, {format_bytes(view.total_bytes)}"
    parts = make_table("part", "tensors>", "parameters>", "share>", "", "bytes>")
    for name in view.groups:
        num, params, num_bytes = view.group(name)
        share = params / (view.total_params or 1)
        if name == "head" and view.is_tied:
            tied = Text("the embedding serves", style="dim")
            parts.add_row(name, str(num), "", "", tied, format_bytes(num_bytes) if num else "")
        elif num:
            cells = (str(num), format_count(params), format_share(share, 1))
            parts.add_row(name, *cells, bar(share), format_bytes(num_bytes))
    hidden = 0
    table = make_table("tensor~", "shape>", "stored as", "bits>", "bytes>")
    for tensor in sorted(view.tensors, key=_natural):
        if not shows_all and _LATER_LAYER.search(tensor.name):
            hidden += 1
            continue
        table.add_row(
            Text(one_line(tensor.name)), _shape(tensor), tensor.dtype, str(tensor.bits),
            format_bytes(tensor.nbytes),
        )  # fmt: skip
    note = f"{hidden} more in later layers; --all lists them" if hidden else ""
    return [
        Text.assemble(("parameters", "bold"), (f"  {model}: ", "dim"), total),
        parts,
        heading("tensors", note),
        table,
    ]


def _natural(tensor: "Parameter") -> list[tuple[int, str]]:
    """Orders layer 2 before layer 10."""
    parts = re.split(r"(\d+)", tensor.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _shape(tensor: "Parameter") -> str:
    return " × ".join(map(str, tensor.shape))


def make_parameter_page(view: "ParameterView", model: str) -> str:
    """Returns a web page: one bar cut into the parts, and all tensors."""
    x, parts = 0.0, []
    for number, name in enumerate(view.groups):
        num, params, num_bytes = view.group(name)
        width = 900 * params / (view.total_params or 1)
        size = f"{num} tensors, {format_bytes(num_bytes)}"
        told = f"{name}: {format_count(params)} parameters, {size}"
        colour = page.GROUP_COLOURS[number]
        parts.append(
            f'<rect x="{x:.1f}" y="4" width="{width:.1f}" height="36" fill="{colour}"><title>'
            f"{page.escape(told)}</title></rect>"
        )
        parts.append(
            f'<rect x="0" y="{56 + 22 * number}" width="12" height="12" fill="{colour}"/>'
            f'<text x="20" y="{67 + 22 * number}">{page.escape(told)}</text>'
        )
        x += width
    rows: list[list[str | float | int]] = [
        [t.name, _shape(t), t.dtype, t.bits, t.nbytes, t.group]
        for t in sorted(view.tensors, key=_natural)
    ]
    header = ["tensor", "shape", "stored as", "bits", "bytes", "part"]
    total = f"{format_count(view.total_params)} parameters, {format_bytes(view.total_bytes)}"
    tied = "; the embedding serves as the head" if view.is_tied else ""
    return page.make_page(
        "Parameters",
        f"{model}: {total}{tied}",
        [
            ("Parts", page.make_svg(900, 60 + 22 * len(view.groups), parts)),
            ("Tensors", page.make_table(header, rows)),
        ],
    )


# -- what contexts cost ----------------------------------------------------------------------------


def make_cost_view(
    costs: "list[Cost]", rates: "Rates", limit: int, model: str
) -> list[RenderableType]:
    """Returns a row for each context."""
    table = make_table(
        *("tokens>", "attention>", "feed-forward>", "attention is", "KV cache>", "prefill>"),
        "tok/s>",
    )
    for c in costs:
        share = c.attention / c.total
        beyond = "" if c.num_tokens <= limit else "*"
        table.add_row(
            format_count(c.num_tokens) + beyond,
            format_flops(c.attention).removesuffix("FLOP"),
            format_flops(c.feed_forward).removesuffix("FLOP"),
            bar(share, 6).append(f" {format_share(share):>5}"),
            format_bytes(c.kv_bytes),
            format_seconds(rates.prefill_s(c)),
            f"{1 / rates.decode_token_s(c):.3g}",
        )
    what = "operations, and seconds from rates measured now"
    measured = [f"{format_count(n)} tokens {format_seconds(s)}" for n, s in rates.measured]
    lines: list[RenderableType] = [
        Text.assemble(("cost", "bold"), (f"  {model}; {what}", "dim")),
        table,
        Parts(["measured prefills", *measured], style="dim"),
        Text(_formulas(rates), style="dim"),
    ]
    if any(c.num_tokens > limit for c in costs):
        lines.append(Text(f"* beyond this model's {format_count(limit)} tokens", style="dim"))
    return lines


def format_flops(count: float) -> str:
    """Returns a number of operations: `12.5 GFLOP`."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if count < 1000:
            return f"{count:.3g} {unit}FLOP"
        count /= 1000
    return f"{count:.3g} EFLOP"


def _formulas(rates: "Rates") -> str:
    parts = [f"matrices {format_flops(1 / rates.linear_s)}/s"] if rates.linear_s else []
    if rates.attention_s:
        parts.append(f"attention {format_flops(1 / rates.attention_s)}/s")
    return ", ".join(parts) + "; attention 4·n²·heads·head size a layer, twice what the mask leaves"


def make_cost_page(costs: "list[Cost]", rates: "Rates", limit: int, model: str) -> str:
    """Returns a web page: the share of attention grows with the context."""
    parts = []
    names = ("projections", "feed-forward", "attention")
    for number, c in enumerate(costs):
        y, x = 26 + number * 34, 110.0
        parts.append(
            f'<text x="100" y="{y + 17}" text-anchor="end">{format_count(c.num_tokens)}</text>'
        )
        for colour, name, count in zip(
            page.GROUP_COLOURS, names, (c.projections, c.feed_forward, c.attention), strict=False
        ):
            width = 600 * count / c.total
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="26" fill="{colour}">'
                f"<title>{name}: {format_flops(count)}</title></rect>"
            )
            x += width
        parts.append(
            f'<text class="soft" x="720" y="{y + 17}">{format_flops(c.total)}, prefill '
            f"{format_seconds(rates.prefill_s(c))}</text>"
        )
    for number, name in enumerate(names):
        parts.append(
            f'<rect x="{110 + 150 * number}" y="4" width="12" height="12"'
            f' fill="{page.GROUP_COLOURS[number]}"/>'
            f'<text x="{128 + 150 * number}" y="14">{name}</text>'
        )
    rows: list[list[str | float | int]] = [
        [
            format_count(c.num_tokens),
            format_flops(c.attention),
            format_flops(c.projections),
            format_flops(c.feed_forward),
            format_bytes(c.kv_bytes),
            format_seconds(rates.prefill_s(c)),
            f"{1 / rates.decode_token_s(c):.3g} tok/s",
        ]
        for c in costs
    ]
    header = ["tokens", "attention", "projections", "feed-forward", "KV cache", "prefill", "decode"]
    lead = f"{model}: seconds from rates measured on this machine; it reads {format_count(limit)}"
    return page.make_page(
        "Cost of a context",
        f"{lead} tokens at most",
        [
            ("Operations", page.make_svg(960, 36 + 34 * len(costs), parts)),
            ("Numbers", page.make_table(header, rows)),
        ],
    )
