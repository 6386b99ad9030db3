"""Longer trials than `make test`: bare machines, the oldest dependencies, other Pythons.

Each writes a page of docs/proofs. Only the standard library is used, so that the system's
Python can run them.
"""
