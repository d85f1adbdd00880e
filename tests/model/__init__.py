"""Random sequences of operations against what must come of them: the ledger of rows, the capacity
of the pools, and the sessions of the server.

By hand, for any length and with any seed, with every step before a failure printed::

    MODEL_SECONDS=600 MODEL_SEED=7 pytest -n0 tests/model

A seed decides who acts, in which order, and what the server kills between two steps. What threads
and the server do meanwhile it does not decide: in flight a failure may take some runs to return.
"""
