"""What privacy costs: releases of data under noise, composed over rounds and tasks to one ε.

`gaussian` has the exact formula, `accountant` composes, `calibration` finds the noise for a target, `release` is one
event, `ledger` keeps them over a whole run, and `statement` is an ε with the terms that it is void without.
"""
