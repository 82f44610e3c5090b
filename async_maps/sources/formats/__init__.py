"""One module per file format that holds activation maps, picked by the registry."""
