"""Pure functions that turn values into intensities, colors and PNG bytes, without asyncio and I/O."""
