"""Whole programs to run, read and copy: each needs ``pip install 'async-maps[examples]'``; nothing imports them."""
