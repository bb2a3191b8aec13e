/* SPDX-License-Identifier: Apache-2.0 */
/* A token bucket (RFC 9002 section 7.7) that hands out a GSO batch's worth at a time. */
#ifndef ZDP_RECOVERY_PACING_H
#define ZDP_RECOVERY_PACING_H

#include <stdint.h>

struct zdp_pacing {
	uint64_t rate; /* bytes per second; 0: not paced */
	uint64_t tokens; /* bytes */
	uint64_t filled_ns; /* when `tokens` were right */
	uint32_t packet_bytes;
};

/* A change of rate does not touch what has been saved up. */
void zdp_pacing_set_rate(struct zdp_pacing *pacing, uint64_t rate, uint64_t now_ns);
uint64_t zdp_pacing_allowance(struct zdp_pacing *pacing, uint64_t now_ns);
/* When zdp_pacing_allowance will not be 0. */
uint64_t zdp_pacing_at(const struct zdp_pacing *pacing);
void zdp_pacing_sent(struct zdp_pacing *pacing, uint64_t bytes, uint64_t now_ns);

#endif
