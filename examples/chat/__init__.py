"""A chat for browsers: FastAPI, the openai SDK, and a page without a framework."""
