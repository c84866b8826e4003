"""Rules by which the server merges the clients' trunks, one file each."""
