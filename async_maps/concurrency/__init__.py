"""Bounded streams, byte budgets, task cancellation and the event loop. Independent of the rest of the package."""
