"""Measurements of the engine: what is measured, in which process, and what the figures say."""
