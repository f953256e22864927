"""The Beanie documents, and the listings of them."""
