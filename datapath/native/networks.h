/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions by network: the longest prefix that holds an address. Asked when no session has the
 * address itself. */
#ifndef ZDP_NETWORKS_H
#define ZDP_NETWORKS_H

#include "table.h"

#define ZDP_NETWORKS_MAX 4096
#define ZDP_PREFIX_LENGTHS 129

struct zdp_networks {
	struct zdp_table table; /* key: address, zero beyond its prefix; length of the prefix */
	struct {
		uint16_t networks[ZDP_PREFIX_LENGTHS]; /* of this prefix length */
		uint8_t lengths[ZDP_PREFIX_LENGTHS];   /* those in use, the longest first */
		uint8_t count;
	} families[2]; /* IPv4, IPv6 */
};

/* `bytes` of address: 4 or 16. */
void *zdp_networks_find(const struct zdp_networks *networks, const uint8_t *address, size_t bytes);
/* Bits beyond the prefix do not count. Replaces what is there. False: no memory, no such prefix, or
 * too many networks. */
bool zdp_networks_put(struct zdp_networks *networks, const uint8_t *address, size_t bytes,
		      unsigned int prefix_bits, void *value);
/* Only if it is `value`'s; true when it was. */
bool zdp_networks_remove(struct zdp_networks *networks, const uint8_t *address, size_t bytes,
			 unsigned int prefix_bits, const void *value);
void zdp_networks_remove_value(struct zdp_networks *networks, const void *value);
void zdp_networks_free(struct zdp_networks *networks);

#endif
