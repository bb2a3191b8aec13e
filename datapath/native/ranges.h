/* SPDX-License-Identifier: Apache-2.0 */
/* A bounded set of packet number ranges, largest first: what is to be acknowledged. */
#ifndef ZDP_RANGES_H
#define ZDP_RANGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Both ends included. */
struct zdp_range {
	uint64_t first, last;
};

#define ZDP_RANGES_MAX 64
struct zdp_ranges {
	uint32_t count, capacity;
	struct zdp_range *items; /* descending, never touching; grows up to ZDP_RANGES_MAX */
};

void zdp_ranges_free(struct zdp_ranges *ranges);
/* Adds [first, last], merging what touches. Full: the smallest range is forgotten (RFC 9000
 * section 13.2.3). Fast when it extends the largest range. False: no memory. */
bool zdp_ranges_add(struct zdp_ranges *ranges, uint64_t first, uint64_t last);
/* Forgets every number up to and including `last`: the peer has seen our ACK of them. */
void zdp_ranges_forget(struct zdp_ranges *ranges, uint64_t last);
bool zdp_ranges_has(const struct zdp_ranges *ranges, uint64_t number);

#endif
