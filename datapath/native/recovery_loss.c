/* SPDX-License-Identifier: Apache-2.0 */
/* Which packets are lost (RFC 9002 sections 6.1 and 7.6). */
#include "recovery_private.h"

/* Rounds with real losses and no spurious one, after which patience is given up again (Linux's RACK
 * has 16 recoveries); twice as many each time that it had to be learned anew. */
#define CLEAN_ROUNDS 16U
#define MOST_DOUBLINGS 6

static uint64_t larger(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static uint64_t base_rtt_ns(const struct zdp_recovery *recovery)
{
	return larger(larger(recovery->rtt.smoothed, recovery->rtt.latest), recovery->in_order_rtt_ns);
}

/* 9/8 of the RTT; more, up to twice the RTT, where packets were seen to come later than that. */
static uint64_t loss_delay_ns(const struct zdp_recovery *recovery)
{
	uint64_t rtt = base_rtt_ns(recovery), delay = rtt + rtt / 8;

	if (recovery->late_ns > delay)
		delay = recovery->late_ns < 2 * rtt ? recovery->late_ns : 2 * rtt;
	return larger(delay, ZDP_GRANULARITY_NS);
}

uint64_t zdp_remember_lost_ns(const struct zdp_recovery *recovery)
{
	return 2 * base_rtt_ns(recovery) + 4 * recovery->rtt.variance + ZDP_GRANULARITY_NS;
}

/* A stretch of lost packets with no acknowledged one between: from when to when they were sent. */
struct stretch {
	uint64_t first_ns, last_ns, first_number, last_number;
	bool begun;
};

static void stretch_over(struct stretch *stretch, const struct zdp_sent_run *run)
{
	bool acked = (run->outstanding | run->lost) != zdp_run_all(run);

	if (acked) {
		stretch->begun = false;
		return;
	}
	if (run->lost == 0)
		return;
	if (!stretch->begun) {
		stretch->begun = true;
		stretch->first_ns = run->sent_ns;
		stretch->first_number = run->first;
	}
	stretch->last_ns = run->sent_ns;
	stretch->last_number = zdp_run_last(run);
}

/* aioquic's packets are not in the ring: an ACK of one of them ends a stretch too. */
static bool acks_inside(const struct zdp_ack *ack, const struct stretch *stretch)
{
	for (size_t i = 0; i < ack->count; i++)
		if (ack->ranges[i].first < stretch->last_number &&
		    ack->ranges[i].last > stretch->first_number)
			return true;
	return false;
}

static bool is_persistent(const struct zdp_recovery *recovery, const struct zdp_ack *ack,
			  const struct stretch *stretch)
{
	uint64_t duration = 3 * zdp_rtt_pto_ns(&recovery->rtt, recovery->config.peer_max_ack_delay_ns);

	return ack != NULL && stretch->begun && recovery->rtt.sampled &&
	       stretch->first_ns > recovery->rtt.first_sample_at_ns &&
	       stretch->last_ns - stretch->first_ns > duration && !acks_inside(ack, stretch);
}

static uint64_t bits_below(const struct zdp_sent_run *run, uint64_t number)
{
	if (number <= run->first)
		return 0;
	return number - run->first >= 64 ? UINT64_MAX : (1ULL << (number - run->first)) - 1;
}

static void lose(struct zdp_recovery *recovery, struct zdp_sent_run *run, uint64_t bits,
		 struct zdp_newly *newly)
{
	uint32_t packets = (uint32_t)__builtin_popcountll(bits);

	run->outstanding &= ~bits;
	run->lost |= bits;
	recovery->sent.packets -= packets;
	recovery->sent.bytes -= (uint64_t)packets * run->bytes;
	if (run->marked_ect0)
		recovery->marked_in_flight -= packets;
	newly->event.lost_packets += packets;
	newly->event.lost_bytes += (uint64_t)packets * run->bytes;
	if (newly->event.lost_sent_ns <= run->sent_ns) {
		newly->event.lost_sent_ns = run->sent_ns;
		newly->event.lost_in_flight = run->in_flight;
	}
}

void zdp_detect_lost(struct zdp_recovery *recovery, const struct zdp_ack *ack, uint64_t now_ns,
		     struct zdp_newly *newly)
{
	struct zdp_sent *sent = &recovery->sent;
	uint64_t delay = loss_delay_ns(recovery), too_far = 0;
	struct stretch stretch = {0};

	recovery->loss_time_ns = UINT64_MAX;
	if (recovery->largest_acked == UINT64_MAX)
		return;
	if (recovery->largest_acked >= recovery->packet_threshold)
		too_far = recovery->largest_acked - recovery->packet_threshold + 1;
	zdp_sent_settle(sent);
	for (uint32_t at = sent->oldest; at != sent->tail; at++) {
		struct zdp_sent_run *run = zdp_sent_at(sent, at);
		uint64_t bits = run->outstanding & bits_below(run, recovery->largest_acked);

		if (run->first > recovery->largest_acked)
			break;
		if (bits && run->sent_ns + delay > now_ns) {
			bits &= bits_below(run, too_far);
			if (run->outstanding & bits_below(run, recovery->largest_acked) & ~bits &&
			    run->sent_ns + delay < recovery->loss_time_ns)
				recovery->loss_time_ns = run->sent_ns + delay;
		}
		if (bits)
			lose(recovery, run, bits, newly);
		stretch_over(&stretch, run);
		if (is_persistent(recovery, ack, &stretch))
			newly->persistent = true;
		if (recovery->loss_time_ns != UINT64_MAX && run->first >= too_far)
			break; /* what follows was sent later, and is not too far behind */
	}
	if (newly->event.lost_packets && recovery->ecn.state == ZDP_ECN_UNKNOWN)
		zdp_ecn_lost(&recovery->ecn, (uint32_t)recovery->marked_in_flight);
}

static void forget_reordering(struct zdp_recovery *recovery)
{
	recovery->packet_threshold = ZDP_PACKET_THRESHOLD;
	recovery->late_ns = 0;
	recovery->clean_rounds = 0;
	if (recovery->forgotten < MOST_DOUBLINGS)
		recovery->forgotten++;
}

void zdp_learn_reordering(struct zdp_recovery *recovery, const struct zdp_newly *newly,
			  uint64_t now_ns)
{
	if (newly->event.spurious_packets) {
		recovery->clean_rounds = 0;
		if (newly->spurious_distance >= recovery->packet_threshold)
			recovery->packet_threshold = newly->spurious_distance < UINT32_MAX / 2
							     ? (uint32_t)newly->spurious_distance + 1
							     : UINT32_MAX / 2;
		if (newly->spurious_late_ns + newly->spurious_late_ns / 8 > recovery->late_ns)
			recovery->late_ns = newly->spurious_late_ns + newly->spurious_late_ns / 8;
		return;
	}
	if (newly->event.lost_packets == 0 || now_ns < recovery->clean_until_ns)
		return;
	recovery->clean_until_ns = now_ns + base_rtt_ns(recovery);
	if (recovery->packet_threshold > ZDP_PACKET_THRESHOLD || recovery->late_ns)
		if (++recovery->clean_rounds >= CLEAN_ROUNDS << recovery->forgotten)
			forget_reordering(recovery);
}
