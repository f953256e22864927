"""Types, limits, events and errors. Pure: nothing here does I/O."""
