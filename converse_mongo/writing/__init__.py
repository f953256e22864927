"""Tokens in: the writer of a message, its buffer and its flusher."""
