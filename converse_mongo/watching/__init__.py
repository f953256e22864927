"""Events out: the hub with its change stream, what it knows of messages, and watchers."""
