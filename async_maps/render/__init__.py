"""From values to intensities, colors and PNG bytes. Pure functions: no asyncio, no I/O."""
