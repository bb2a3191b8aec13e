"""``zgatectl bundle``: what somebody else needs to know about a gateway, in one file, no secrets.

`sources` is the list of what goes in, and nothing else does; `redact` takes secrets and addresses
out of every text (pure); `archive` writes the file.
"""
