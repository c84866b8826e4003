"""Rules by which the server merges the clients' trunks, one file each.

Some are Flower's own, which reads its switches when it is imported.
"""

from fedcl import offline

offline.stay()
