"""The gateway's DNS responder: names of services, for those who may reach them.

``zone`` turns a query into an answer, ``access`` knows who asks and what it may reach, ``quota``
how often, ``responder`` holds the sockets. Why it is here and what it is not:
docs/adr/0020-dns-responder.md.
"""
