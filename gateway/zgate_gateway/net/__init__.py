"""What the gateway sets in the kernel's network: link, routes, tc, nftables, sysctls."""
