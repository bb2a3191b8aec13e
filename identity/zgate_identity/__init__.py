"""Who a peer is: the certificate authority, client verification, revocation."""
