"""Configuration of Sphinx: ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

from importlib.metadata import version as installed_version

project = "converse_mongo"
author = "The converse_mongo authors"
copyright = author  # noqa: A001 - Sphinx wants this name
release = version = installed_version("converse-mongo")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"converse_mongo {release}"

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [
    ("Iterating raises", "Raises"),
    ("Entering raises", "Raises"),
    ("Leaving and every call inside raises", "Raises"),
]
python_use_unqualified_type_names = True
