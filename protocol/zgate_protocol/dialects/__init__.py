"""Framings of IP packets that are not RFC 9484's; what the gateway serves if it is told to."""
