/* SPDX-License-Identifier: Apache-2.0 */
/* Congestion controllers: what recovery tells them, and the window and the pacing rate they answer.
 * Bytes, nanoseconds, bytes per second. */
#ifndef ZDP_CONGESTION_H
#define ZDP_CONGESTION_H

#include <stdbool.h>
#include <stdint.h>

#include "recovery.h"

/* ZDP_CONGESTION_NONE: against memory, not against the network. */
#define ZDP_WINDOW_WITHOUT_CONTROL (32ULL << 20)

/* What one ACK, or one run of the timer, brought. */
struct zdp_ack_event {
	uint64_t now_ns;
	uint64_t acked_bytes, lost_bytes;
	uint32_t acked_packets, lost_packets, spurious_packets;
	uint64_t ce_packets;	   /* newly known to be marked Congestion Experienced */
	uint64_t in_flight_before; /* bytes, before this event */
	uint64_t in_flight;	   /* bytes, after it */
	uint64_t delivered;	   /* bytes of the connection, after it */
	uint64_t largest_sent_ns;  /* when the newest of the newly acknowledged packets was sent; 0: none */
	uint64_t lost_sent_ns;	   /* when the newest of the newly lost packets was sent; 0: none */
	uint64_t lost_in_flight;   /* bytes in flight when that packet had been sent */
	/* RTT of the newest packet that no packet before it is missed for, as it came; one that overtook
	 * others says nothing about the path that the others take. 0: there is none. */
	uint64_t rtt_ns;
	uint64_t ack_delay_ns; /* part of rtt_ns that the peer says it waited, limited */
	uint64_t smoothed_rtt_ns, least_rtt_ns;
	/* The rate sample of that packet; interval_ns 0: there is none. */
	uint64_t rate_bytes, rate_interval_ns;
	uint64_t rate_prior_delivered; /* bytes delivered when it was sent */
	bool app_limited;
	bool window_limited; /* the window was in use since the last event */
};

struct zdp_cubic {
	uint64_t slow_start_threshold, window_max, window_prior, epoch_ns, recovery_start_ns;
	uint64_t origin_ns; /* K of RFC 9438 */
	uint64_t estimate; /* bytes; W_est */
	uint64_t last_event_ns;
	/* HyStart++ (RFC 9406) */
	uint64_t round_least_rtt_ns, last_round_least_rtt_ns, baseline_rtt_ns, round_end_delivered;
	uint32_t round_samples, conservative_rounds;
	bool conservative;
	/* Before the last reduction, in case that it was for nothing. */
	uint64_t undo_window, undo_threshold, undo_window_max;
	uint32_t undo_lost, undo_spurious;
};

/* Greatest of a sliding window, by three samples (as Linux's lib/win_minmax.c). */
struct zdp_windowed_max {
	struct {
		uint64_t at, value;
	} samples[3];
};

enum zdp_model_phase {
	ZDP_MODEL_STARTUP,
	ZDP_MODEL_DRAIN,
	ZDP_MODEL_CRUISE,
	ZDP_MODEL_UP,
	ZDP_MODEL_DOWN,
	ZDP_MODEL_PROBE_RTT,
};

struct zdp_model {
	enum zdp_model_phase phase;
	uint64_t phase_began_ns, phase_began_round;
	struct zdp_windowed_max rate; /* bytes per second, over rounds */
	struct zdp_windowed_max extra_acked; /* bytes, over rounds */
	uint64_t extra_began_ns, extra_bytes; /* the epoch under way */
	uint64_t least_rtt_ns, least_rtt_at_ns, probe_least_rtt_ns, probed_at_ns;
	/* Rounds: one ends when a packet is acknowledged that was sent after it began. */
	uint64_t round, round_end_delivered, round_least_rtt_ns;
	uint32_t slow_rounds; /* in which the RTT stayed far above the least */
	bool queueing; /* the RTT stayed above the least for the last round */
	bool take_next_rtt; /* it was sent into an idle path, when the least was old */
	uint64_t full_rate; /* that STARTUP or UP compares with */
	uint64_t up_gain; /* percent */
	uint32_t full_rounds;
	bool full;
	/* Losses, tested once enough packets have come together. */
	uint64_t test_acked_packets, test_lost_packets, test_ce_packets;
	uint64_t test_in_flight;
	uint64_t ceiling; /* bytes in flight that the path was seen not to carry; UINT64_MAX: unknown */
	uint64_t ceiling_step, rate_bound;
	uint64_t undo_ceiling, undo_lost, undo_spurious; /* in case that the losses were none */
	uint32_t cruise_rounds;
	uint32_t random;
};

struct zdp_congestion_state {
	enum zdp_congestion kind;
	uint32_t packet_bytes;
	uint64_t window; /* bytes in flight allowed */
	uint64_t pacing_rate; /* bytes per second; 0: not paced */
	union {
		struct zdp_cubic cubic;
		struct zdp_model model;
	};
};

/* min(10 packets, max(14720 bytes, 2 packets)): RFC 9002 section 7.2. */
uint64_t zdp_initial_window(uint32_t packet_bytes);

void zdp_congestion_begin(struct zdp_congestion_state *state, enum zdp_congestion kind,
			  uint32_t packet_bytes, uint64_t initial_rtt_ns);
/* Sent into an idle connection (nothing was in flight). */
void zdp_congestion_restart(struct zdp_congestion_state *state, uint64_t now_ns);
void zdp_congestion_event(struct zdp_congestion_state *state, const struct zdp_ack_event *event);
/* RFC 9002 section 7.6. */
void zdp_congestion_persistent(struct zdp_congestion_state *state, uint64_t now_ns);
const char *zdp_congestion_phase(const struct zdp_congestion_state *state);
/* Bytes per second; 0: unknown. */
uint64_t zdp_congestion_delivery_rate(const struct zdp_congestion_state *state);

/* The controllers themselves, for congestion.c. */
void zdp_cubic_begin(struct zdp_congestion_state *state);
void zdp_cubic_restart(struct zdp_congestion_state *state, uint64_t now_ns);
void zdp_cubic_event(struct zdp_congestion_state *state, const struct zdp_ack_event *event);
void zdp_cubic_persistent(struct zdp_congestion_state *state);
const char *zdp_cubic_phase(const struct zdp_congestion_state *state);
void zdp_model_begin(struct zdp_congestion_state *state, uint64_t initial_rtt_ns);
void zdp_model_restart(struct zdp_congestion_state *state, uint64_t now_ns);
void zdp_model_event(struct zdp_congestion_state *state, const struct zdp_ack_event *event);
void zdp_model_persistent(struct zdp_congestion_state *state, uint64_t now_ns);
const char *zdp_model_phase_name(const struct zdp_congestion_state *state);
uint64_t zdp_model_rate(const struct zdp_congestion_state *state);

void zdp_windowed_max_add(struct zdp_windowed_max *max, uint64_t window, uint64_t at,
			  uint64_t value);

#endif
