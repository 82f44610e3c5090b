"""The command ``async-maps``: one file per command."""
