"""Tools for tests, ours and yours: real servers that can be killed, and stand-ins that speak the real formats.

Import the module you need (`from koo.testing.postgres import PostgresServer`): each has dependencies of its own.
"""
