/* SPDX-License-Identifier: Apache-2.0 */
#include "recovery_private.h"

#include <stdlib.h>
#include <string.h>

/* RFC 9002 doubles the PTO for ever. A tunnel's user waits for the path to come back: one packet in
 * this time does not congest anything. */
#define MAX_PROBE_INTERVAL_NS 500000000ULL

static void begin_path(struct zdp_recovery *recovery)
{
	const struct zdp_recovery_config *config = &recovery->config;

	zdp_rtt_begin(&recovery->rtt, config->initial_rtt_ns);
	zdp_congestion_begin(&recovery->congestion, config->congestion, config->max_packet_bytes,
			     recovery->rtt.smoothed);
	recovery->pacing = (struct zdp_pacing){.packet_bytes = config->max_packet_bytes};
	zdp_pacing_set_rate(&recovery->pacing, recovery->congestion.pacing_rate, 0);
	recovery->packet_threshold = ZDP_PACKET_THRESHOLD;
	recovery->loss_time_ns = UINT64_MAX;
	recovery->late_ns = recovery->in_order_rtt_ns = recovery->clean_until_ns = 0;
	recovery->clean_rounds = recovery->forgotten = recovery->probe_count = 0;
	recovery->app_limited_until = recovery->marked_in_flight = 0;
}

struct zdp_recovery *zdp_recovery_new(const struct zdp_recovery_config *config)
{
	struct zdp_recovery *recovery = calloc(1, sizeof(*recovery));

	if (recovery == NULL)
		return NULL;
	recovery->config = *config;
	recovery->largest_acked = UINT64_MAX;
	begin_path(recovery);
	return recovery;
}

void zdp_recovery_free(struct zdp_recovery *recovery)
{
	if (recovery == NULL)
		return;
	zdp_sent_free(&recovery->sent);
	free(recovery);
}

void zdp_recovery_set_packet_bytes(struct zdp_recovery *recovery, uint32_t max_packet_bytes)
{
	recovery->config.max_packet_bytes = max_packet_bytes;
	recovery->congestion.packet_bytes = max_packet_bytes;
	recovery->pacing.packet_bytes = max_packet_bytes;
}

void zdp_recovery_path_changed(struct zdp_recovery *recovery)
{
	/* What was sent on the old path says nothing about the new one. */
	zdp_sent_free(&recovery->sent);
	begin_path(recovery);
	zdp_ecn_path_changed(&recovery->ecn);
}

bool zdp_recovery_marks_ect0(const struct zdp_recovery *recovery)
{
	/* RFC 9484 section 10.2: without congestion control there is nobody to answer a mark. */
	return recovery->config.congestion != ZDP_CONGESTION_NONE &&
	       zdp_ecn_marks(&recovery->ecn);
}

static uint32_t age(uint64_t since_ns, uint64_t now_ns)
{
	uint64_t units = (now_ns - since_ns) >> ZDP_AGE_SHIFT;

	return now_ns < since_ns ? 0 : units > UINT32_MAX ? UINT32_MAX : (uint32_t)units;
}

/* Single packets that are sent at one time share a run. */
static bool extend(struct zdp_sent *sent, uint64_t first, uint32_t count, uint16_t bytes, bool marked,
		   uint64_t now_ns)
{
	struct zdp_sent_run *run;

	if (sent->head == sent->tail)
		return false;
	run = zdp_sent_at(sent, sent->tail - 1);
	if (run->sent_ns != now_ns || run->bytes != bytes || run->marked_ect0 != marked ||
	    run->count + count > ZDP_RUN_PACKETS || zdp_run_last(run) + 1 != first ||
	    run->outstanding != zdp_run_all(run))
		return false;
	run->count = (uint8_t)(run->count + count);
	run->outstanding = zdp_run_all(run);
	sent->packets += count;
	sent->bytes += (uint64_t)count * bytes;
	return true;
}

static bool remember(struct zdp_recovery *recovery, uint64_t first, uint32_t count, uint16_t bytes,
		     bool marked, uint64_t now_ns)
{
	struct zdp_sent *sent = &recovery->sent;

	while (count) {
		uint32_t part = count < ZDP_RUN_PACKETS ? count : ZDP_RUN_PACKETS;
		struct zdp_sent_run *run;

		if (!extend(sent, first, part, bytes, marked, now_ns)) {
			run = zdp_sent_push(sent, first, (uint8_t)part, bytes);
			if (run == NULL)
				return false;
			run->sent_ns = now_ns;
			run->delivered = recovery->delivered;
			run->delivered_age = age(recovery->delivered_ns, now_ns);
			run->first_sent_age = age(recovery->first_sent_ns, now_ns);
			run->in_flight = sent->bytes < UINT32_MAX ? (uint32_t)sent->bytes : UINT32_MAX;
			run->app_limited = recovery->app_limited_until != 0;
			run->marked_ect0 = marked;
		}
		if (marked)
			recovery->marked_in_flight += part;
		first += part;
		count -= part;
	}
	return true;
}

bool zdp_recovery_sent(struct zdp_recovery *recovery, uint64_t first, uint32_t count,
		       uint32_t bytes, bool app_limited, uint64_t now_ns)
{
	struct zdp_sent *sent = &recovery->sent;
	bool marked = zdp_recovery_marks_ect0(recovery), remembered;

	if (sent->packets == 0) {
		recovery->first_sent_ns = recovery->delivered_ns = now_ns;
		zdp_congestion_restart(&recovery->congestion, now_ns);
	}
	remembered = remember(recovery, first, count, (uint16_t)bytes, marked, now_ns);
	recovery->sent_packets += count;
	if (!remembered)
		recovery->lost_packets += count;
	if (marked)
		zdp_ecn_sent(&recovery->ecn, count);
	recovery->last_sent_ns = recovery->probe_base_ns = now_ns;
	zdp_pacing_sent(&recovery->pacing, (uint64_t)count * bytes, now_ns);
	if (sent->bytes + recovery->config.max_packet_bytes > recovery->congestion.window)
		recovery->window_limited = true;
	else if (app_limited)
		recovery->app_limited_until = recovery->delivered + sent->bytes;
	return remembered;
}

void zdp_recovery_conclude(struct zdp_recovery *recovery, struct zdp_newly *newly, uint64_t now_ns,
			   struct zdp_ack_outcome *outcome)
{
	struct zdp_ack_event *event = &newly->event;

	event->in_flight = recovery->sent.bytes;
	event->delivered = recovery->delivered;
	event->smoothed_rtt_ns = recovery->rtt.smoothed;
	event->least_rtt_ns = recovery->rtt.least;
	event->window_limited = recovery->window_limited;
	recovery->window_limited = false;
	recovery->acked_packets += event->acked_packets;
	recovery->lost_packets += event->lost_packets;
	recovery->spurious_packets += event->spurious_packets;
	recovery->ce_packets += event->ce_packets;
	outcome->acked_packets = event->acked_packets;
	outcome->acked_bytes = event->acked_bytes;
	outcome->lost_packets = event->lost_packets;
	outcome->lost_bytes = event->lost_bytes;
	zdp_learn_reordering(recovery, newly, now_ns);
	if (event->acked_packets || event->lost_packets || event->spurious_packets)
		zdp_congestion_event(&recovery->congestion, event);
	if (newly->persistent) {
		recovery->persistent_congestion++;
		zdp_rtt_forget_least(&recovery->rtt);
		zdp_congestion_persistent(&recovery->congestion, now_ns);
	}
	zdp_pacing_set_rate(&recovery->pacing, recovery->congestion.pacing_rate, now_ns);
	zdp_sent_prune(&recovery->sent, now_ns < zdp_remember_lost_ns(recovery)
						? 0 : now_ns - zdp_remember_lost_ns(recovery));
}

uint64_t zdp_recovery_allowance(struct zdp_recovery *recovery, uint64_t now_ns)
{
	uint64_t window = recovery->congestion.window, paced;

	if (recovery->sent.bytes + recovery->config.max_packet_bytes > window)
		return 0;
	paced = zdp_pacing_allowance(&recovery->pacing, now_ns);
	return paced < window - recovery->sent.bytes ? paced : window - recovery->sent.bytes;
}

uint64_t zdp_recovery_send_at(const struct zdp_recovery *recovery, uint64_t now_ns)
{
	uint64_t at = zdp_pacing_at(&recovery->pacing);

	if (recovery->sent.bytes + recovery->config.max_packet_bytes > recovery->congestion.window)
		return UINT64_MAX;
	return at > now_ns ? at : now_ns;
}

void zdp_recovery_heard(struct zdp_recovery *recovery, uint64_t now_ns)
{
	(void)now_ns;
	if (recovery->probe_count > 1)
		recovery->probe_count = 1;
}

static uint64_t probe_at(const struct zdp_recovery *recovery)
{
	uint64_t pto = zdp_rtt_pto_ns(&recovery->rtt, recovery->config.peer_max_ack_delay_ns);
	uint64_t most = pto > MAX_PROBE_INTERVAL_NS ? pto : MAX_PROBE_INTERVAL_NS;
	uint64_t interval = recovery->probe_count < 16 ? pto << recovery->probe_count : most;

	return recovery->probe_base_ns + (interval < most ? interval : most);
}

uint64_t zdp_recovery_deadline(const struct zdp_recovery *recovery)
{
	const struct zdp_sent *sent = &recovery->sent;

	if (recovery->loss_time_ns != UINT64_MAX)
		return recovery->loss_time_ns;
	if (sent->packets)
		return probe_at(recovery);
	if (sent->head != sent->tail) /* only lost ones are left: time to forget them */
		return zdp_sent_at(sent, sent->tail - 1)->sent_ns + zdp_remember_lost_ns(recovery);
	return UINT64_MAX;
}

bool zdp_recovery_timer(struct zdp_recovery *recovery, uint64_t now_ns,
			struct zdp_ack_outcome *outcome)
{
	struct zdp_newly newly = {.event = {.now_ns = now_ns,
					    .in_flight_before = recovery->sent.bytes}};

	*outcome = (struct zdp_ack_outcome){0};
	if (now_ns < zdp_recovery_deadline(recovery))
		return false;
	if (recovery->loss_time_ns != UINT64_MAX || recovery->sent.packets == 0) {
		zdp_detect_lost(recovery, NULL, now_ns, &newly);
		zdp_recovery_conclude(recovery, &newly, now_ns, outcome);
		return false;
	}
	recovery->probe_count++;
	recovery->probe_timeouts++;
	recovery->probe_base_ns = now_ns;
	return true;
}

void zdp_recovery_stats(const struct zdp_recovery *recovery, struct zdp_recovery_stats *stats)
{
	*stats = (struct zdp_recovery_stats){
		.smoothed_rtt_ns = recovery->rtt.smoothed,
		.rtt_variance_ns = recovery->rtt.variance,
		.least_rtt_ns = recovery->rtt.least,
		.latest_rtt_ns = recovery->rtt.latest,
		.window_bytes = recovery->congestion.window,
		.in_flight_bytes = recovery->sent.bytes,
		.pacing_bytes_per_s = recovery->pacing.rate,
		.delivery_bytes_per_s = zdp_congestion_delivery_rate(&recovery->congestion),
		.lost_packets = recovery->lost_packets,
		.acked_packets = recovery->acked_packets,
		.sent_packets = recovery->sent_packets,
		.spurious_packets = recovery->spurious_packets,
		.probe_timeouts = recovery->probe_timeouts,
		.largest_acked = recovery->largest_acked,
		.persistent_congestion = recovery->persistent_congestion,
		.ce_packets = recovery->ce_packets,
		.packet_threshold = recovery->packet_threshold,
		.ecn_capable = recovery->ecn.state == ZDP_ECN_CAPABLE,
		.phase = zdp_congestion_phase(&recovery->congestion),
		.memory_bytes = sizeof(*recovery) +
				recovery->sent.capacity * sizeof(struct zdp_sent_run),
	};
}
