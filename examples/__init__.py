"""Examples of converse_mongo."""
