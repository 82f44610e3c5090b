"""``python -m async_maps`` is the command ``async-maps``."""

from async_maps.cli import main

if __name__ == "__main__":
    main()
