"""Numbers as colours, for heat maps in the terminal and on pages: dark is little, bright much."""

# From violet over blue and green to yellow: its brightness grows evenly, so it can be read without
# seeing colours too.
_STOPS = ((38, 30, 62), (52, 92, 140), (38, 152, 139), (250, 215, 70))

Colour = tuple[int, int, int]


def mix_colour(share: float) -> Colour:
    """Returns the colour of a share from 0 to 1."""
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    index = min(int(place), len(_STOPS) - 2)
    a, b = _STOPS[index], _STOPS[index + 1]
    red, green, blue = (round(x + (y - x) * (place - index)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def format_hex(colour: Colour) -> str:
    """Returns a colour as pages and Rich spell it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def choose_ink(colour: Colour) -> str:
    """Returns which of black and white is read better on a colour."""
    red, green, blue = colour
    return "black" if red * 0.3 + green * 0.59 + blue * 0.11 > 120 else "white"


def shade(share: float) -> str:
    """Returns the Rich style of a cell."""
    colour = mix_colour(share)
    return f"{choose_ink(colour)} on {format_hex(colour)}"
