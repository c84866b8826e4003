"""Rules by which the net grows, one file each; without any, modules keep the units they start with."""
