"""Complete programs to run, read and copy (extra ``examples``). The package does not import them."""
