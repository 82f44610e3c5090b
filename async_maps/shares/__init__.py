"""Runs the parts of a plan: a share of them in this process, or all on the machines of an engine."""
