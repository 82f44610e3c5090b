"""Whole programs to run, read and copy: each needs ``pip install '.[examples]'``; nothing imports them."""
