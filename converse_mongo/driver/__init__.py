"""The only room that knows Motor from PyMongo Async, and Beanie 1 from Beanie 2."""
