"""The chat of ``converse-mongo serve``: FastAPI, the openai SDK, a page without a framework."""
