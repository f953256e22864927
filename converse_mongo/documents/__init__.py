"""Documents: the Beanie classes, and listings of them."""
