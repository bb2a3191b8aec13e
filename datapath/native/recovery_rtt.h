/* SPDX-License-Identifier: Apache-2.0 */
/* The round-trip time (RFC 9002 section 5). Nanoseconds. */
#ifndef ZDP_RECOVERY_RTT_H
#define ZDP_RECOVERY_RTT_H

#include <stdbool.h>
#include <stdint.h>

#define ZDP_INITIAL_RTT_NS 333000000ULL
#define ZDP_GRANULARITY_NS 1000000ULL

struct zdp_rtt {
	bool sampled;
	uint64_t first_sample_at_ns;
	uint64_t latest, smoothed, variance, least;
};

/* `initial_ns`: 0 for RFC 9002's. */
void zdp_rtt_begin(struct zdp_rtt *rtt, uint64_t initial_ns);
/* `ack_delay_ns` is what the peer said, not yet limited to its max_ack_delay. */
void zdp_rtt_sample(struct zdp_rtt *rtt, uint64_t latest_ns, uint64_t ack_delay_ns,
		    uint64_t max_ack_delay_ns, uint64_t now_ns);
/* Persistent congestion: what was the least may be of another path (RFC 9002 section 5.2). */
void zdp_rtt_forget_least(struct zdp_rtt *rtt);
/* The PTO without backoff (RFC 9002 section 6.2.1). */
uint64_t zdp_rtt_pto_ns(const struct zdp_rtt *rtt, uint64_t max_ack_delay_ns);

#endif
