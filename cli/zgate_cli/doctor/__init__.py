"""``zgatectl doctor``: is this host fit to run a gateway, and does the gateway do well?

Every check is a function of a `host.Context`; none changes anything on the host.
"""
