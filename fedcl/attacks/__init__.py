"""Attacks that measure what an artefact tells about the data behind it: pure functions on tensors and nets.

    confidence stacked membership      was a sample among those trained on …
    intervals roc                      … and how sure is that
    gradients analytic labels          what gradients and Fisher diagonals show without any search …
    inversion adapter                  … and with one
    images                             how near a reconstruction is
    audit one_run                      a lower bound of ε from what canaries score

A figure says what this attack found with this budget. That it found nothing is no guarantee: that is the ledger's part.
"""
