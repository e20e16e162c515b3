"""A terminal chat for Apple silicon over MLX."""

from mlxchat.openblas import watch_imports

__version__ = "0.1.0"

watch_imports()
