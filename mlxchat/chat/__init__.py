"""A conversation: messages, their rendering to token ids, turns."""
