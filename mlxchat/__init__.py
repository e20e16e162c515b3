"""A terminal chat for Apple silicon over MLX."""

__version__ = "0.1.0"
