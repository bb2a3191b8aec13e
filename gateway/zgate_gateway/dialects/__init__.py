"""Clients that do not speak RFC 9484: the same sessions, addresses, policy and counters.

Off unless `dialects` in the configuration names them. Packets of these clients go through Python
one by one, whatever the engine is. See docs/dialects.md.
"""
