"""Benchmarks: one file per question. ``python -m bench job`` runs one; each runs its peers beside us."""
