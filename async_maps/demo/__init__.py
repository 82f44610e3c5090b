"""The demo: a whole run on this machine, without an account."""
