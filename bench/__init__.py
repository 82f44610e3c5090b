"""Benches: one file a question, each with its peers beside us. ``python -m bench`` runs all of them."""
