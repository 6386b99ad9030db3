"""Errors that koo did not raise: what an application's own operation raised, in which library, and what it means.

meaning.py walks through an error and its causes. Each other file knows one family: the vendors' own SDKs, HTTP
libraries, databases, any error that carries an HTTP status. No library is imported: a class is known by its name and
module.
"""
