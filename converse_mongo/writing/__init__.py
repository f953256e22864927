"""Writing: the writer of a message, its buffer, and the task that appends."""
