"""One module per file format; the registry selects them."""
