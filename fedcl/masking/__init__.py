"""Secure aggregation: the server learns the sum of the hospitals' vectors, and of none of them its own.

SecAgg (Bonawitz et al. 2017) and, for many parties, SecAgg+ (Bell et al. 2020), as pure functions over bytes, whole
numbers and tensors. Party i sends y_i = x_i + PRG(b_i) + Σ_{j>i} PRG(s_ij) − Σ_{j<i} PRG(s_ij) mod R. Masks of pairs
cancel in the sum. Of each survivor the server rebuilds b_i from Shamir shares, of each party that dropped out its
masking key, never both. Parts of a message (trunk, task modules, metrics) have masks and seeds of their own, among
their owners alone, in one run of the protocol.

    phase       server → party           party → server              functions
    0 keys      session, terms           Advert                      party.advertise      sums.roster
    1 shares    Roster                   Sealed                      party.share          sums.deliver
    2 vectors   Delivery                 [length] of each part       party.mask           sums.request
    3 unmask    Request                  Reveal                      party.unmask         sums.opened

What is claimed. Against a server that follows the protocol and remembers all it sees (semi-honest), together with up to
t − 1 parties: it learns, for each part, the sum over the honest owners that survived, and nothing else of their
vectors, their weights included. t is more than half of those who hold a share of a secret. Above 16 parties a graph of
neighbours takes the place of all pairs: `graph` says for how many colluders and dropouts, and with which chance of
failure. The sum is exact modulo R and comes through while t of each party's holders stay. A part with fewer surviving
owners than the cohort is not summed: neither side goes on with it. Masks come from a stream cipher.

What is not. A malicious server, which may tell parties different things about who is there, or send crafted weights; a
malicious party, which may send a false vector or false shares. What the sum itself gives away: over few hospitals, with
all but one of them colluding, or between rounds with different parties; for that, noise must be added. Who takes part,
who owns which part, its length, when they answer, and how long they take are in the open. Python can neither erase keys
from memory nor calculate in constant time.

References:
    Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth. Practical Secure Aggregation for
        Privacy-Preserving Machine Learning. CCS 2017.
    Bell, Bonawitz, Gascón, Lepoint, Raykova. Secure Single-Server Aggregation with (Poly)Logarithmic Overhead.
        CCS 2020.
"""
