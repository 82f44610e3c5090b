"""Benchmarks, one file for each question. ``python -m bench`` runs all of them."""
