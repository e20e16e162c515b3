"""Token ids in, token events out, timed."""
