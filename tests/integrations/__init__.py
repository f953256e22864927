"""The translators, each with the real SDK of its framework and a server on 127.0.0.1."""
