"""The administration API: HTTP with typed schemas over a Unix socket.

``schemas`` is the vocabulary, ``facade`` what the daemon must offer, ``app`` the routes and
``server`` the sockets.
"""
