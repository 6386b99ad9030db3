"""Classify errors that koo did not raise itself: those of an application's own operation under a guard.

meaning.py walks through an error and its causes. Each other file covers one family: the vendors' SDKs, HTTP libraries,
databases, and any error that carries an HTTP status. No library is imported: a class is recognised by its name and
module.
"""
