"""Where a run's figures go besides its directory: one file a tracker, each an extra."""
