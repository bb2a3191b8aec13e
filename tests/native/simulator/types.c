/* SPDX-License-Identifier: Apache-2.0 */
/* A network of one bottleneck, event by event, with the engine's own recovery at its senders.
 *
 *   sender -> [chance of loss] -> bottleneck (rate, buffer, stalls) -> delay -> receiver
 *          <- delay <- [chance of loss] <- ACKs, every so many packets or after a time
 *
 * A flow is the engine's (its source is greedy, limited, or a Reno TCP inside of the tunnel behind the
 * engine's queue), or a Reno TCP of its own. Deterministic: the same seed gives the same run. */
#include <stdlib.h>
#include <string.h>

#include "queue.h"
#include "ranges.h"
#include "recovery.h"

#define MAX_FLOWS 4
#define BUCKETS 600
#define BUCKET_NS 100000000ULL
#define SECOND 1000000000ULL
#define RING 65536
#define PACKET 1400
#define INNER 1340

enum flow_kind { ENGINE, RENO, ENGINE_WITH_RENO_INSIDE };

struct flow_config {
	int32_t kind, congestion;
	int32_t packet_bytes; /* of the engine's packets, at most PACKET; 0: PACKET */
	double start_s, stop_s;
	double source_rate; /* bytes/s of an application-limited source; 0: greedy */
	double source_rate_at_s, new_source_rate; /* the source changes; 0: never */
	double on_s, off_s; /* the source sends and rests in turn; 0: always on */
	double extra_delay_s; /* each way */
};

struct config {
	double seconds, measure_from_s;
	double rate, buffer_bytes, delay_s;
	double loss, ack_loss, reorder;
	double mark_above_bytes; /* CE above so much in the buffer; 0: never */
	double rate_at_s, new_rate; /* the bottleneck changes; 0: never */
	double delay_at_s, new_delay_s;
	double outage_from_s, outage_to_s;
	double loss_from_s, loss_to_s, loss_then; /* another chance of loss for a while */
	double stall_every_s, stall_s; /* the bottleneck stands still: a receiver without a CPU */
	double timer_slack_s; /* senders wake up so much late */
	double ack_delay_s;
	int32_t ack_packets, foreign_every, seed, flow_count;
	int32_t tell_path_changed;
	struct flow_config flows[MAX_FLOWS];
};

struct flow_result {
	double delivered_bytes; /* in the measured time */
	double sent_packets, lost_packets, spurious_packets, really_lost_packets;
	double queue_drops, probe_timeouts, persistent, ce_packets;
	double window_bytes, least_rtt_s, smoothed_rtt_s, packet_threshold, memory_bytes, pacing;
	double queue_wait_mean_s, queue_wait_p95_s; /* in the engine's queue, Reno inside */
	double buckets[BUCKETS]; /* bytes delivered per 100 ms */
	char phase[32];
};

struct result {
	double wait_mean_s, wait_p95_s, wait_max_s; /* in the bottleneck, measured time */
	double dropped_packets, utilisation;
	struct flow_result flows[MAX_FLOWS];
};

struct reno {
	double window, threshold;
	uint64_t next, una, highest, recovery_point, in_flight, last_progress_ns;
	uint8_t acked[RING];
};

enum event_kind { ARRIVE, FOREIGN, ACK, WAKE, RENO_ACK, ACK_TIMER };

struct event {
	uint64_t at, order;
	enum event_kind kind;
	int flow;
	uint64_t number;
	bool ce;
	struct zdp_ack *ack;
};

struct flow {
	const struct flow_config *config;
	struct flow_result *result;
	struct zdp_recovery *recovery;
	struct zdp_queue *queue;
	struct reno reno;
	uint64_t next_number, wake_at, budget_ns;
	double budget;
	uint64_t inner_of[RING]; /* inner number by outer number */
	/* receiver */
	struct zdp_ranges received;
	struct zdp_ecn_counts ecn;
	uint32_t unacked;
	uint64_t ack_timer_at, largest_at;
	uint64_t waits;
	uint32_t wait_histogram[4000]; /* of 0.25 ms */
	double wait_sum;
};

struct simulation {
	const struct config *config;
	struct result *result;
	uint64_t now, link_free, order;
	uint64_t *leaving; /* when what is in the buffer will have left */
	size_t leaving_first, leaving_last;
	uint64_t random;
	struct event *heap;
	size_t count, capacity;
	struct flow flows[MAX_FLOWS];
	uint64_t waits;
	double wait_sum, link_bytes;
	uint32_t wait_histogram[40000]; /* of 25 us */
	bool path_told;
};
