/* SPDX-License-Identifier: Apache-2.0 */
/* What an ACK acknowledges, and what it tells about the path. */
#include "recovery_private.h"

/* The newest of the packets that one range newly acknowledges. */
struct top {
	uint64_t number;
	uint32_t position;
	bool any;
};

static uint64_t bits_of(const struct zdp_sent_run *run, const struct zdp_range *range)
{
	uint64_t bits = zdp_run_all(run);

	if (range->first > run->first)
		bits &= ~0ULL << (range->first - run->first);
	if (range->last < zdp_run_last(run))
		bits &= (1ULL << (range->last - run->first + 1)) - 1;
	return bits;
}

static void note_spurious(const struct zdp_recovery *recovery, struct zdp_sent_run *run,
			  uint64_t bits, uint64_t now_ns, struct zdp_newly *newly)
{
	uint64_t oldest = run->first + (uint64_t)__builtin_ctzll(bits);

	newly->event.spurious_packets += (uint32_t)__builtin_popcountll(bits);
	if (recovery->largest_acked != UINT64_MAX && recovery->largest_acked > oldest &&
	    recovery->largest_acked - oldest > newly->spurious_distance)
		newly->spurious_distance = recovery->largest_acked - oldest;
	if (now_ns - run->sent_ns > newly->spurious_late_ns)
		newly->spurious_late_ns = now_ns - run->sent_ns;
	run->lost &= ~bits;
}

static void take(struct zdp_recovery *recovery, struct zdp_sent_run *run, uint64_t bits,
		 uint64_t now_ns, struct zdp_newly *newly)
{
	uint64_t acked = bits & run->outstanding;
	uint32_t packets = (uint32_t)__builtin_popcountll(acked);

	if (bits & run->lost)
		note_spurious(recovery, run, bits & run->lost, now_ns, newly);
	if (acked == 0)
		return;
	run->outstanding &= ~acked;
	recovery->sent.packets -= packets;
	recovery->sent.bytes -= (uint64_t)packets * run->bytes;
	newly->event.acked_packets += packets;
	newly->event.acked_bytes += (uint64_t)packets * run->bytes;
	if (run->sent_ns > newly->event.largest_sent_ns)
		newly->event.largest_sent_ns = run->sent_ns;
	if (run->marked_ect0) {
		newly->marked_acked += packets;
		recovery->marked_in_flight -= packets;
	}
}

static uint64_t highest(uint64_t bits)
{
	return 63 - (uint64_t)__builtin_clzll(bits);
}

/* From the range's upper end downwards. Runs that hold no bits are jumped over, and a jump is
 * remembered where it began, so that ranges which every ACK repeats cost next to nothing. */
static void take_range(struct zdp_recovery *recovery, const struct zdp_range *range, uint32_t *hint,
		       uint64_t now_ns, struct zdp_newly *newly, struct top *top)
{
	struct zdp_sent *sent = &recovery->sent;
	struct zdp_sent_run *jump = NULL;
	uint32_t at, jump_at = 0;

	top->any = false;
	if (!zdp_sent_find(sent, range->last, *hint, &at))
		return;
	for (;;) {
		struct zdp_sent_run *run = zdp_sent_at(sent, at);
		uint64_t bits;
		uint32_t down = 1;

		if (zdp_run_last(run) < range->first)
			return;
		*hint = at; /* the next range may end in this run as well */
		if ((run->outstanding | run->lost) == 0) {
			if (jump == NULL) {
				jump = run;
				jump_at = at;
			}
			down = run->skip;
			jump->skip = jump_at - at + down;
		} else {
			jump = NULL;
			bits = bits_of(run, range);
			if (!top->any && (bits & run->outstanding)) {
				*top = (struct top){
					run->first + highest(bits & run->outstanding), at, true};
			}
			take(recovery, run, bits, now_ns, newly);
		}
		if (at - sent->head < down)
			return;
		at -= down;
	}
}

static uint64_t frontier(const struct zdp_sent *sent)
{
	const struct zdp_sent_run *run;

	if (sent->oldest == sent->tail)
		return UINT64_MAX;
	run = zdp_sent_at(sent, sent->oldest);
	return run->first + (uint64_t)__builtin_ctzll(run->outstanding);
}

static uint64_t ack_delay_ns(const struct zdp_recovery *recovery, uint64_t delay)
{
	uint8_t exponent = recovery->config.peer_ack_delay_exponent;

	if (delay > (ZDP_VARINT_MAX >> exponent) / 1000)
		return ZDP_VARINT_MAX;
	return (delay << exponent) * 1000;
}

/* Samples of RTT and rate for the controller, from the newest packet before which none is missing: a
 * packet that overtook others arrived sooner than the path carries. */
static void sample(struct zdp_recovery *recovery, const struct zdp_ack *ack, const struct top *tops,
		   uint64_t now_ns, struct zdp_newly *newly)
{
	struct zdp_ack_event *event = &newly->event;
	uint64_t before, send_elapsed, ack_elapsed;
	const struct zdp_sent_run *run;
	size_t i = 0;

	zdp_sent_settle(&recovery->sent);
	before = frontier(&recovery->sent);
	while (i < ack->count && !(tops[i].any && tops[i].number < before))
		i++;
	if (i == ack->count)
		return;
	run = zdp_sent_at(&recovery->sent, tops[i].position);
	event->rtt_ns = now_ns > run->sent_ns ? now_ns - run->sent_ns : 1;
	if (tops[i].number == ack->ranges[0].last) {
		event->ack_delay_ns = ack_delay_ns(recovery, ack->delay);
		if (event->ack_delay_ns > recovery->config.peer_max_ack_delay_ns)
			event->ack_delay_ns = recovery->config.peer_max_ack_delay_ns;
	}
	recovery->in_order_rtt_ns = recovery->in_order_rtt_ns
					    ? (7 * recovery->in_order_rtt_ns + event->rtt_ns) / 8
					    : event->rtt_ns;
	send_elapsed = (uint64_t)run->first_sent_age << ZDP_AGE_SHIFT;
	ack_elapsed = event->rtt_ns + ((uint64_t)run->delivered_age << ZDP_AGE_SHIFT);
	event->rate_bytes = recovery->delivered - run->delivered;
	event->rate_interval_ns = send_elapsed > ack_elapsed ? send_elapsed : ack_elapsed;
	event->rate_prior_delivered = run->delivered;
	event->app_limited = run->app_limited;
	recovery->first_sent_ns = run->sent_ns;
}

static void update_rtt(struct zdp_recovery *recovery, const struct zdp_ack *ack, uint64_t now_ns,
		       const struct zdp_newly *newly)
{
	if (newly->largest_is_new)
		zdp_rtt_sample(&recovery->rtt, newly->largest_rtt_ns,
			       ack_delay_ns(recovery, ack->delay),
			       recovery->config.peer_max_ack_delay_ns, now_ns);
}

static void take_all(struct zdp_recovery *recovery, const struct zdp_ack *ack, uint64_t now_ns,
		     struct zdp_newly *newly, struct top *tops)
{
	uint32_t hint = recovery->sent.tail;

	for (size_t i = 0; i < ack->count; i++)
		take_range(recovery, &ack->ranges[i], &hint, now_ns, newly, &tops[i]);
	if (ack->count && tops[0].any && tops[0].number == ack->ranges[0].last) {
		const struct zdp_sent_run *run = zdp_sent_at(&recovery->sent, tops[0].position);

		newly->largest_is_new = true;
		newly->largest_rtt_ns = now_ns > run->sent_ns ? now_ns - run->sent_ns : 1;
	}
}

static void note_delivery(struct zdp_recovery *recovery, const struct zdp_newly *newly,
			  uint64_t now_ns)
{
	recovery->delivered += newly->event.acked_bytes;
	recovery->delivered_ns = now_ns;
	recovery->probe_count = 0;
	if (recovery->app_limited_until && recovery->delivered > recovery->app_limited_until)
		recovery->app_limited_until = 0;
}

void zdp_recovery_ack(struct zdp_recovery *recovery, const struct zdp_ack *ack,
		      uint64_t next_number, uint64_t now_ns, struct zdp_ack_outcome *outcome)
{
	struct zdp_newly newly = {.event = {.now_ns = now_ns,
					    .in_flight_before = recovery->sent.bytes}};
	struct top tops[ZDP_MAX_ACK_RANGES];
	uint64_t largest;
	bool raised;

	*outcome = (struct zdp_ack_outcome){0};
	if (ack->count == 0)
		return;
	largest = ack->ranges[0].last;
	if (largest >= next_number) {
		outcome->bad = true;
		return;
	}
	take_all(recovery, ack, now_ns, &newly, tops);
	raised = recovery->largest_acked == UINT64_MAX || largest > recovery->largest_acked;
	if (raised)
		recovery->largest_acked = largest;
	update_rtt(recovery, ack, now_ns, &newly);
	if (newly.event.acked_packets)
		note_delivery(recovery, &newly, now_ns);
	if (raised)
		newly.event.ce_packets = zdp_ecn_ack(&recovery->ecn, ack, newly.marked_acked);
	zdp_detect_lost(recovery, ack, now_ns, &newly);
	if (newly.event.acked_packets)
		sample(recovery, ack, tops, now_ns, &newly);
	zdp_recovery_conclude(recovery, &newly, now_ns, outcome);
}
