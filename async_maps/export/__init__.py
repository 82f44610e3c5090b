"""Exports the rows of a manifest or a plan as a table, in the format of the program that reads it."""
