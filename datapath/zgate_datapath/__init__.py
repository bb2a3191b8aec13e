"""The packet engine: UDP and TUN in batches, QUIC through aioquic."""
