/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of recovery share. */
#ifndef ZDP_RECOVERY_PRIVATE_H
#define ZDP_RECOVERY_PRIVATE_H

#include "bytes.h"
#include "congestion.h"
#include "recovery.h"
#include "recovery_ecn.h"
#include "recovery_pacing.h"
#include "recovery_rtt.h"
#include "recovery_sent.h"

#define ZDP_PACKET_THRESHOLD 3 /* RFC 9002 section 6.1.1 */

struct zdp_recovery {
	struct zdp_recovery_config config;
	struct zdp_sent sent;
	struct zdp_rtt rtt;
	struct zdp_ecn ecn;
	struct zdp_pacing pacing;
	struct zdp_congestion_state congestion;
	/* Loss detection */
	uint64_t largest_acked; /* of any packet of the connection; UINT64_MAX: none */
	uint64_t loss_time_ns;	/* UINT64_MAX: nothing is suspected */
	uint64_t last_sent_ns;
	uint64_t probe_base_ns; /* the PTO runs from here: last sending, or when the peer was heard */
	uint32_t probe_count;
	uint32_t packet_threshold;
	uint64_t late_ns; /* how late packets come that were overtaken; 0: none was seen */
	uint64_t in_order_rtt_ns; /* smoothed */
	uint32_t clean_rounds; /* losses without a spurious one among them */
	uint32_t forgotten; /* how often reordering was forgotten: each time it takes longer */
	uint64_t clean_until_ns;
	/* The connection's delivery, for rate samples */
	uint64_t delivered, delivered_ns, first_sent_ns;
	uint64_t app_limited_until; /* in bytes delivered; 0: not limited by the application */
	uint64_t marked_in_flight;
	bool window_limited; /* since the last ACK */
	/* Statistics */
	uint64_t lost_packets, acked_packets, sent_packets, spurious_packets, probe_timeouts;
	uint64_t persistent_congestion, ce_packets;
};

/* What an ACK or the timer did to the ring. */
struct zdp_newly {
	struct zdp_ack_event event;
	uint32_t marked_acked; /* packets sent with ECT(0) */
	uint64_t spurious_distance; /* packet numbers that the most overtaken packet was behind */
	uint64_t spurious_late_ns;
	bool largest_is_new; /* the ACK's largest is ours and newly acknowledged */
	uint64_t largest_rtt_ns;
	bool persistent; /* RFC 9002 section 7.6 */
};

/* Declares lost what is too far behind `largest_acked` or too old (RFC 9002 section 6.1), and sets
 * loss_time_ns. `ack`: which numbers it names, for persistent congestion; NULL: from the timer. */
void zdp_detect_lost(struct zdp_recovery *recovery, const struct zdp_ack *ack, uint64_t now_ns,
		     struct zdp_newly *newly);
/* A packet that was taken for lost has arrived: be more patient. */
void zdp_learn_reordering(struct zdp_recovery *recovery, const struct zdp_newly *newly,
			  uint64_t now_ns);
/* Hands an event to the controller, the statistics and the caller. */
void zdp_recovery_conclude(struct zdp_recovery *recovery, struct zdp_newly *newly, uint64_t now_ns,
			   struct zdp_ack_outcome *outcome);
/* How long lost packets are remembered. */
uint64_t zdp_remember_lost_ns(const struct zdp_recovery *recovery);

#endif
