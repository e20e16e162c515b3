"""Rendering: byte for byte what transformers renders, and what happens where it cannot."""
