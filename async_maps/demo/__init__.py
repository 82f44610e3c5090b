"""The whole job on this machine, without an account."""
