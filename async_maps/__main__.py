"""``python -m async_maps``: the same as the command ``async-maps``."""

from async_maps.cli.app import main

if __name__ == "__main__":
    main()
