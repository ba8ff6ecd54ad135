"""Programs that run a codec without this package."""
