"""Driver: the only package that tells Motor from PyMongo Async, and Beanie 1 from Beanie 2."""
