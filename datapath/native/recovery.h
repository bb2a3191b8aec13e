/* SPDX-License-Identifier: Apache-2.0 */
/* Loss detection and congestion control of the packets that the engine sent (RFC 9002), per packet.
 *
 * Sans-IO: the caller tells what it sent, what was acknowledged and what time it is (CLOCK_MONOTONIC
 * nanoseconds), and asks how much it may send and when to come back. aioquic's own packets share
 * the packet number space: they are not in here, and an ACK of them is no business of ours.
 * A lost datagram is lost: nothing is ever sent again (RFC 9221 section 5.2).
 *
 * An optimistic ACK (RFC 9000 section 21.4) names what did not arrive yet. Only what was never sent
 * is noticed here: numbers are aioquic's counter, and none is skipped as bait. A peer that lies so
 * makes its own session's packets come faster than its path carries, up to the model's window. */
#ifndef ZDP_RECOVERY_H
#define ZDP_RECOVERY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frames.h"

enum zdp_congestion {
	ZDP_CONGESTION_NONE,  /* the path's owner says that there is no need */
	ZDP_CONGESTION_MODEL, /* delivery rate and least RTT, in the manner of BBR */
	ZDP_CONGESTION_CUBIC, /* RFC 9438 */
};

struct zdp_recovery_config {
	enum zdp_congestion congestion;
	uint32_t max_packet_bytes; /* UDP payload */
	uint64_t initial_rtt_ns;   /* 0: RFC 9002's 333 ms */
	uint64_t peer_max_ack_delay_ns;
	uint8_t peer_ack_delay_exponent;
};

struct zdp_recovery; /* small while nothing is in flight */

struct zdp_recovery *zdp_recovery_new(const struct zdp_recovery_config *config);
void zdp_recovery_free(struct zdp_recovery *recovery);
void zdp_recovery_set_packet_bytes(struct zdp_recovery *recovery, uint32_t max_packet_bytes);
/* Another path: RTT and the congestion state begin anew (RFC 9000 section 9.4). */
void zdp_recovery_path_changed(struct zdp_recovery *recovery);

/* Whether packets that are sent now should be marked ECT(0) (RFC 9000 section 13.4.2). Ask before each
 * batch: the packets told by zdp_recovery_sent are taken to be marked as this said. aioquic's own
 * packets must not be marked, or validation fails and marking ends. */
bool zdp_recovery_marks_ect0(const struct zdp_recovery *recovery);

/* `count` packets of `bytes` each, ack-eliciting, with consecutive numbers from `first`. `app_limited`:
 * nothing more waits to be sent. False when there is no memory: they count as lost. */
bool zdp_recovery_sent(struct zdp_recovery *recovery, uint64_t first, uint32_t count,
		       uint32_t bytes, bool app_limited, uint64_t now_ns);

struct zdp_ack_outcome {
	uint32_t acked_packets, lost_packets;
	uint64_t acked_bytes, lost_bytes;
	bool bad; /* acknowledges a number never sent: the peer is broken (RFC 9000 section 13.1) */
};

/* `next_number`: one above the largest that this connection has sent, aioquic's included. */
void zdp_recovery_ack(struct zdp_recovery *recovery, const struct zdp_ack *ack,
		      uint64_t next_number, uint64_t now_ns, struct zdp_ack_outcome *outcome);

/* Any packet of the peer arrived. Where probes are unanswered, the path may be back: the next probe
 * does not wait for the end of a backed-off PTO. */
void zdp_recovery_heard(struct zdp_recovery *recovery, uint64_t now_ns);

/* Bytes that may be sent at `now_ns`, both by window and by pacing. When 0 and something waits,
 * zdp_recovery_send_at says when pacing has room again (UINT64_MAX: an ACK must come first). Pacing
 * works in quanta worth a GSO batch: timers are coarse, and system calls dear. */
uint64_t zdp_recovery_allowance(struct zdp_recovery *recovery, uint64_t now_ns);
uint64_t zdp_recovery_send_at(const struct zdp_recovery *recovery, uint64_t now_ns);

/* When zdp_recovery_timer is due: time threshold of a suspected loss, or PTO. UINT64_MAX: never. */
uint64_t zdp_recovery_deadline(const struct zdp_recovery *recovery);
/* True: send an ack-eliciting packet now, whatever the window says (a probe, RFC 9002 section 6.2). */
bool zdp_recovery_timer(struct zdp_recovery *recovery, uint64_t now_ns,
			struct zdp_ack_outcome *outcome);

struct zdp_recovery_stats {
	uint64_t smoothed_rtt_ns, rtt_variance_ns, least_rtt_ns, latest_rtt_ns;
	uint64_t window_bytes, in_flight_bytes, pacing_bytes_per_s, delivery_bytes_per_s;
	uint64_t lost_packets, acked_packets, sent_packets, spurious_packets, probe_timeouts;
	uint64_t largest_acked; /* UINT64_MAX: none yet */
	uint64_t persistent_congestion, ce_packets;
	uint32_t packet_threshold; /* 3, more on a path that reorders */
	bool ecn_capable; /* the path and the peer were seen to carry ECN */
	const char *phase; /* the controller's: "startup", "avoidance", ...; static */
	size_t memory_bytes;
};
void zdp_recovery_stats(const struct zdp_recovery *recovery, struct zdp_recovery_stats *stats);

#endif
