/* SPDX-License-Identifier: Apache-2.0 */
/* Pairs of addresses that Python's packet gate has judged: every protocol may pass between them.
 *
 * The rules of RFC 9484 live in one place (zgate_protocol.packet_gate); this is only its memory. A
 * pair that is not here is Python's to judge, so forgetting is always safe. */
#ifndef ZDP_PAIRS_H
#define ZDP_PAIRS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ZDP_PAIRS_MAX 1024

struct zdp_pair {
	uint8_t family; /* 4 or 6; 0: an empty place */
	uint8_t addresses[32]; /* source, destination; IPv4's take the first 8 bytes */
};

struct zdp_pairs {
	struct zdp_pair *places; /* open addressing; NULL while empty */
	uint32_t size, used;
	struct zdp_pair last; /* what was found last time */
};

/* `addresses`: source and destination as in the packet: 8 bytes (IPv4) or 32 (IPv6). */
bool zdp_pairs_has(struct zdp_pairs *pairs, uint8_t family, const uint8_t *addresses);
/* A full memory begins anew. False: no memory. */
bool zdp_pairs_add(struct zdp_pairs *pairs, uint8_t family, const uint8_t *addresses);
void zdp_pairs_clear(struct zdp_pairs *pairs);

/* Whether this is a plain, whole IP packet whose pair is known: IPv4 without options or IPv6, with a
 * length field that tells the truth. */
bool zdp_pairs_pass(struct zdp_pairs *pairs, const uint8_t *packet, size_t bytes);

#endif
