"""Shows overlays on their source images in a browser, from a manifest: ``async-maps view``."""
