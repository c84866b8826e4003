"""Ways to run the same ClientApp and ServerApp: one file each, and what they share."""
