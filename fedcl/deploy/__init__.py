"""A federation on real machines: certificates, keys and start scripts, and what those scripts run."""
