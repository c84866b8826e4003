"""Rules by which the server merges what several clients made of one task's module, one file each."""
