"""Privacy mechanisms, one file each; without any, nothing but isolation protects the data."""
