"""Models of the protocol, against its contract."""

THOROUGH = "CONVERSE_THOROUGH"
"""Where it is set in the environment, the rare bugs are looked for, too."""
