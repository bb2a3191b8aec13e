"""Who a peer is: the certificate authority, client verification, revocation.

verifier, reload         the gateway: is this client who it says it is?
server_verifier          the agent: is this the gateway that was dialled?
authority, profile       our own authority, and what its certificates look like
gateway_identity         a gateway without configuration makes its own
tls_files, files         certificate and key files: checked, written
chain, revocation, names, refusal    the parts
"""
