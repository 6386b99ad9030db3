"""Errors that koo did not raise: what an operation of the user's own raised, in whose words, and what it means.

meaning.py walks through an error and what it was raised from. Each other file knows one family: the vendors' own SDKs,
HTTP libraries, databases, any error that carries an HTTP status. No library is imported: a class is known by its name
and module.
"""
