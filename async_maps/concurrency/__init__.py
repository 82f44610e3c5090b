"""Bounded streams, byte budgets, orderly tasks and the event loop. Knows nothing of maps."""
