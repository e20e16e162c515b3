"""Charts as SVG for pages that stand alone: axes with units, ticks, legends, values on pointing.

Colours and fonts come from the page, which knows light and dark (`page.py`).
"""

from collections.abc import Sequence

from mlxchat.cli.page import GROUP_COLOURS, escape, make_svg
from mlxchat.cli.plots import format_value, nice_ticks

WIDTH, HEIGHT = 760, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 30, 50


def draw_stacked(
    bars: Sequence[tuple[str, Sequence[float]]],
    parts: Sequence[str],
    x_name: str,
    y_name: str,
    *,
    unit: str = "",
) -> str:
    """Draws upright bars of one part or more.

    Args:
        bars: Labels, and a value for each part, none below 0.
        parts: What the parts are; one part needs no legend.
        x_name: Of the horizontal axis.
        y_name: Of the vertical axis, with its unit.
        unit: Of the values, when one points at them.
    """
    ticks = nice_ticks(max((sum(values) for _, values in bars), default=0.0))
    top = ticks[-1]
    room = (WIDTH - _LEFT - _RIGHT) / max(len(bars), 1)
    thick = min(48.0, room * 0.8)
    out = _frame(ticks, x_name, y_name)
    every = max(1, round(46 / room))
    for number, (label, values) in enumerate(bars):
        x = _LEFT + number * room + (room - thick) / 2
        y = float(HEIGHT - _BOTTOM)
        for index, value in enumerate(values):
            tall = value / top * (HEIGHT - _TOP - _BOTTOM)
            y -= tall
            name = f"{parts[index]}: " if len(parts) > 1 else ""
            out.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{thick:.1f}" height="{tall:.1f}"'
                f' fill="{_colour(index)}"><title>{escape(f"{x_name} {label}, {name}")}'
                f"{escape(f'{format_value(value)} {unit}'.strip())}</title></rect>"
            )
        if number % every == 0:
            out.append(_text(x + thick / 2, HEIGHT - _BOTTOM + 16, label, "middle"))
    if len(parts) > 1:
        out += _legend(parts)
    return make_svg(WIDTH, HEIGHT, out, f"{y_name} by {x_name}")


def draw_points(
    groups: Sequence[tuple[str, Sequence[tuple[float, float]]]], x_name: str, y_name: str
) -> str:
    """Draws points on a plane, both axes from 0.

    Args:
        groups: Names and their points (x, y); one group needs no legend.
        x_name: Of the horizontal axis, with its unit.
        y_name: Of the vertical axis, with its unit.
    """
    points = [point for _, group in groups for point in group]
    x_ticks = nice_ticks(max((x for x, _ in points), default=0.0))
    y_ticks = nice_ticks(max((y for _, y in points), default=0.0))
    right, top = x_ticks[-1], y_ticks[-1]
    out = _frame(y_ticks, x_name, y_name)
    wide, tall = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    for tick in x_ticks:
        anchor = "end" if tick == right else "middle"
        x = _LEFT + wide * tick / right
        out.append(_text(x, HEIGHT - _BOTTOM + 16, format_value(tick), anchor))
    for index, (_, group) in enumerate(groups):
        for x, y in group:
            out.append(
                f'<circle cx="{_LEFT + x / right * wide:.1f}"'
                f' cy="{HEIGHT - _BOTTOM - y / top * tall:.1f}" r="4" fill="{_colour(index)}"'
                f"><title>{escape(x_name)}: {format_value(x)},"
                f" {escape(y_name)}: {format_value(y)}</title></circle>"
            )
    if len(groups) > 1:
        out += _legend([name for name, _ in groups])
    return make_svg(WIDTH, HEIGHT, out, f"{y_name} by {x_name}")


def _frame(ticks: Sequence[float], x_name: str, y_name: str) -> list[str]:
    """Returns lines across, ticks of the vertical axis, and the names of both axes."""
    out = []
    tall = HEIGHT - _TOP - _BOTTOM
    for tick in ticks:
        y = HEIGHT - _BOTTOM - tall * tick / ticks[-1]
        out.append(
            f'<line class="line" x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}"/>'
        )
        out.append(_text(_LEFT - 8, y + 4, format_value(tick), "end"))
    out.append(_text((WIDTH + _LEFT) / 2, HEIGHT - 12, x_name, "middle"))
    middle = _TOP + tall / 2
    out.append(
        f'<text class="soft" x="14" y="{middle:.1f}" text-anchor="middle"'
        f' transform="rotate(-90 14 {middle:.1f})">{escape(y_name)}</text>'
    )
    return out


def _legend(names: Sequence[str]) -> list[str]:
    out, x = [], float(_LEFT)
    for index, name in enumerate(names):
        out.append(f'<rect x="{x:.0f}" y="6" width="11" height="11" fill="{_colour(index)}"/>')
        out.append(_text(x + 16, 16, name, "start"))
        x += 16 + 7.2 * len(name) + 18
    return out


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text class="soft" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _colour(index: int) -> str:
    return GROUP_COLOURS[index % len(GROUP_COLOURS)]
