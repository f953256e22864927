"""Translators: one module per framework, between its streams and prompts and our messages.

Each has functions from the stream of the framework to what a message takes, and from our messages
to the prompt of the framework. They are pure: they read no database and call no provider. What they
have in common is in ``streams`` and ``histories``. That of a framework of agents may have a
``respond`` of its own beside them.
"""
