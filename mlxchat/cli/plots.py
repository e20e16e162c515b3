"""Charts made of characters: bars, stacked bars, points on a plane. Pure functions.

Every chart names its axes and units, and fits a width. Without colour the parts of a stacked bar
differ by their character.
"""

import math
from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉"
_FILLS = "█▒░▚·+"
_COLOURS = (34, 33, 36, 35, 32, 37)
_MOST_STEPS = 5


def format_bars(title: str, bars: Sequence[tuple[str, float]], unit: str, width: int = 80) -> str:
    """Returns horizontal bars from 0, each with its value.

    Args:
        title: What is shown.
        bars: Labels and values, none below 0.
        unit: Of the values.
        width: Columns.
    """
    if not bars:
        return f"{title}\n  (nothing to show)"
    values = [format_value(value) for _, value in bars]
    left = max(len(label) for label, _ in bars)
    right = max(map(len, values)) + len(unit) + 1
    room = max(8, width - left - right - 6)
    largest = max(value for _, value in bars) or 1.0
    lines = [title]
    for (label, value), shown in zip(bars, values, strict=True):
        bar = _bar(value / largest, room)
        lines.append(f"  {label:>{left}} {bar:<{room}} {shown} {unit}")
    return "\n".join(lines)


def _bar(share: float, room: int) -> str:
    eighths = round(share * room * 8)
    if share > 0:
        eighths = max(eighths, 1)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def format_stacked(
    title: str,
    bars: Sequence[tuple[str, Sequence[float]]],
    parts: Sequence[str],
    unit: str,
    width: int = 80,
    *,
    is_coloured: bool = False,
) -> str:
    """Returns horizontal bars of several parts, with their sum and a legend.

    Args:
        title: What is shown.
        bars: Labels, and a value for each part, none below 0.
        parts: What the parts are.
        unit: Of the values.
        width: Columns.
        is_coloured: The parts differ by colour too.
    """
    if not bars:
        return f"{title}\n  (nothing to show)"
    sums = [sum(values) for _, values in bars]
    shown = [format_value(total) for total in sums]
    left = max(len(label) for label, _ in bars)
    right = max(map(len, shown)) + len(unit) + 1
    room = max(8, width - left - right - 6)
    largest = max(sums) or 1.0
    legend = "   ".join(f"{_paint(_FILLS[i], i, is_coloured)} {p}" for i, p in enumerate(parts))
    lines = [title, f"  {legend}"]
    for (label, values), total in zip(bars, shown, strict=True):
        cells = _split(values, room * sum(values) / largest)
        bar = "".join(
            _paint(_FILLS[i] * count, i, is_coloured) for i, count in enumerate(cells) if count
        )
        space = " " * (room - sum(cells))
        lines.append(f"  {label:>{left}} {bar}{space} {total} {unit}")
    return "\n".join(lines)


def _split(values: Sequence[float], room: float) -> list[int]:
    """Returns how many columns each part gets: rounded so that they end where the sum does."""
    total = sum(values)
    cells, done, so_far = [], 0, 0.0
    for value in values:
        so_far += value
        end = round(room * so_far / total) if total else 0
        cells.append(end - done)
        done = end
    return cells


def _paint(text: str, index: int, is_coloured: bool) -> str:
    return f"\x1b[{_COLOURS[index]}m{text}\x1b[0m" if is_coloured else text


def format_points(
    title: str,
    points: Sequence[tuple[float, float]],
    x_name: str,
    y_name: str,
    width: int = 80,
    height: int = 10,
) -> str:
    """Returns points on a plane; more points at one place make it darker.

    Args:
        title: What is shown.
        points: (x, y), none below 0.
        x_name: Of the horizontal axis, with its unit.
        y_name: Of the vertical axis, with its unit.
        width: Columns.
        height: Rows of the plane.
    """
    if not points:
        return f"{title}\n  (nothing to show)"
    right = nice_ticks(max(x for x, _ in points))[-1]
    top = nice_ticks(max(y for _, y in points))[-1]
    left = max(len(format_value(top)), 1) + 2
    columns = max(16, width - left - 4)
    counts = [[0] * columns for _ in range(height)]
    for x, y in points:
        column = min(columns - 1, int(x / right * columns))
        row = min(height - 1, int(y / top * height))
        counts[height - 1 - row][column] += 1
    lines = [f"{title} ({y_name})"]
    for number, cells in enumerate(counts):
        value = {0: top, height // 2: top * (height - height // 2) / height}.get(number)
        label = "" if value is None else format_value(value)
        line = "".join(" •●█"[min(count, 3)] for count in cells)
        lines.append(f"{label:>{left}} {'┤' if label else '│'}{line}".rstrip())
    lines.append(f"{'0':>{left}} └{'─' * columns}")
    end = format_value(right)
    lines.append(f"{'':>{left}}  0{x_name:^{columns - len(end) - 1}}{end}")
    return "\n".join(lines)


def nice_ticks(value: float) -> list[float]:
    """Returns round numbers from 0 to one that is not below a value, up to five steps.

    A step is 1, 2 or 5 times a power of ten.
    """
    if value <= 0:
        return [0.0, 1.0]
    power = 10.0 ** (math.floor(math.log10(value)) - 1)
    for step in (2 * power, 5 * power, 10 * power, 20 * power):
        count = math.ceil(value / step * (1 - 1e-9))
        if count <= _MOST_STEPS:
            break
    return [number * step for number in range(count + 1)]


def format_value(value: float) -> str:
    """Returns a number with three digits that matter, thousands set apart."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"
