/* SPDX-License-Identifier: Apache-2.0 */
/* A model of the path, in the manner of BBR (draft-ietf-ccwg-bbr): the greatest rate of delivery and the
 * least RTT. What is in flight is their product and a little more, so that a queue stays short; losses
 * count only where they are more than a path loses by chance.
 *
 *   STARTUP  double each round, until the rate grows no more or too much is lost
 *   DRAIN    what STARTUP has queued
 *   CRUISE, UP, DOWN  at the rate; a quarter above it; below it until the queue is gone
 *   PROBE_RTT  half of what is in flight, for a round: shows the RTT without our own queue
 *
 * Where it departs from the draft, and why: the header of each function. */
#include "congestion.h"

#define US_NS 1000ULL
#define MS_NS 1000000ULL
#define SECOND_NS 1000000000ULL
#define NONE UINT64_MAX

#define RATE_ROUNDS 10
#define EXTRA_ROUNDS 10
#define STARTUP_GAIN 277 /* percent */
#define WINDOW_GAIN 200
#define DRAIN_GAIN 50
#define UP_GAIN 125
#define UP_GROWTH 110
#define UP_ROUNDS 2
#define DOWN_GAIN 75
#define FULL_GROWTH 125
#define FULL_ROUNDS 3
#define QUEUEING_GAIN 125
#define CRUISE_ROUNDS 6
#define PHASE_ROUNDS 4 /* DRAIN and DOWN end after as many, whatever is in flight */
#define MIN_PACKETS 4
#define LEAST_RATE 50000 /* bytes per second */
#define HEADROOM 85	 /* percent of the ceiling that is used while cruising */
#define BETA 85		 /* percent that is left after too much loss */

#define RTT_WINDOW_NS (10 * SECOND_NS)
#define PROBE_RTT_NS (20 * MS_NS)
#define PROBE_RTT_GAIN 50
#define SUSPICION_ROUNDS 5
#define SUSPICION_NS (2 * SECOND_NS)

/* Below this RTT a timer is too coarse to pace with: the window alone limits. */
#define UNPACED_RTT_NS MS_NS
/* ACKs for batches, schedulers and event loops make a path of microseconds look like one that stops
 * and goes: as much more may be in flight as is delivered in this time. */
#define SLACK_NS MS_NS
#define SLACK_MAX_NS (3 * MS_NS / 2)
/* A direction that carries only another's acknowledgements has a small rate, and bursts all the same. */
#define SLACK_PACKETS 6
/* On such a path the peer's processor is what is slow, and it comes and goes: a window of few packets
 * would be acknowledged once in a scheduler's slice, and the rate that this shows would keep it small.
 * 64 packets are a millisecond of a gigabit. */
#define UNPACED_SLACK_PACKETS 64

/* Loss is too much when it is above this share, and not by chance: above it by two standard
 * deviations, judged over at least as many packets. */
#define LOSS_PERCENT 3
#define TEST_PACKETS 20
#define CE_PERCENT 3

static uint64_t larger(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t percent(uint64_t value, uint64_t share)
{
	return value / 100 * share + value % 100 * share / 100;
}

/* Bytes that are delivered at `rate` in `ns`; both may be large. */
static uint64_t product(uint64_t rate, uint64_t ns)
{
	return (uint64_t)((unsigned __int128)rate * ns / SECOND_NS);
}

void zdp_windowed_max_add(struct zdp_windowed_max *max, uint64_t window, uint64_t at,
			  uint64_t value)
{
	uint64_t since = at - max->samples[0].at;

	if (value >= max->samples[0].value || at - max->samples[2].at > window) {
		for (int i = 0; i < 3; i++) {
			max->samples[i].at = at;
			max->samples[i].value = value;
		}
		return;
	}
	for (int i = 1; i < 3; i++) {
		if (value < max->samples[i].value)
			continue;
		for (int j = i; j < 3; j++) {
			max->samples[j].at = at;
			max->samples[j].value = value;
		}
		break;
	}
	if (since > window) {
		max->samples[0] = max->samples[1];
		max->samples[1] = max->samples[2];
		max->samples[2].at = at;
		max->samples[2].value = value;
		if (at - max->samples[0].at > window) {
			max->samples[0] = max->samples[1];
			max->samples[1] = max->samples[2];
		}
	} else if (max->samples[1].at == max->samples[0].at && since > window / 4) {
		for (int j = 1; j < 3; j++) {
			max->samples[j].at = at;
			max->samples[j].value = value;
		}
	} else if (max->samples[2].at == max->samples[1].at && since > window / 2) {
		max->samples[2].at = at;
		max->samples[2].value = value;
	}
}

uint64_t zdp_model_rate(const struct zdp_congestion_state *state)
{
	return state->model.rate.samples[0].value;
}

static uint64_t rate(const struct zdp_model *model)
{
	return smaller(model->rate.samples[0].value, model->rate_bound);
}

static uint64_t least_window(const struct zdp_congestion_state *state)
{
	return (uint64_t)MIN_PACKETS * state->packet_bytes;
}

/* What the path holds by itself. */
static uint64_t path_bytes(const struct zdp_model *model)
{
	return product(rate(model), model->least_rtt_ns);
}

static uint64_t slack(const struct zdp_congestion_state *state)
{
	const struct zdp_model *model = &state->model;
	uint64_t most = product(rate(model), larger(SLACK_MAX_NS, model->least_rtt_ns / 2));
	uint64_t wanted = larger(product(rate(model), SLACK_NS), model->extra_acked.samples[0].value);
	uint64_t packets = model->least_rtt_ns < UNPACED_RTT_NS ? UNPACED_SLACK_PACKETS :
								  SLACK_PACKETS;

	return larger(smaller(wanted, most), packets * state->packet_bytes);
}

/* `gain` in percent, at least 100. What exceeds the path's own is there for ACKs that come late and many
 * at a time: the slack is in it, not beside it. */
static uint64_t window_for(const struct zdp_congestion_state *state, uint64_t gain)
{
	uint64_t path = path_bytes(&state->model), more = percent(path, gain - 100);

	return larger(path + larger(more, slack(state)), least_window(state));
}

void zdp_model_begin(struct zdp_congestion_state *state, uint64_t initial_rtt_ns)
{
	struct zdp_model *model = &state->model;

	model->phase = ZDP_MODEL_STARTUP;
	model->least_rtt_ns = NONE;
	model->round_least_rtt_ns = NONE;
	model->ceiling = NONE;
	model->rate_bound = NONE;
	model->random = 0x9e3779b9;
	/* Until there is a sample, the initial window goes out in a fraction of the assumed RTT. */
	state->pacing_rate = percent(state->window * US_NS * 1000 / (initial_rtt_ns / 1000 + 1),
				     STARTUP_GAIN);
}

static void enter(struct zdp_model *model, enum zdp_model_phase phase, uint64_t now_ns)
{
	model->phase = phase;
	model->phase_began_ns = now_ns;
	model->phase_began_round = model->round;
}

static void cruise(struct zdp_model *model, uint64_t now_ns)
{
	/* Flows that share a queue must not probe in step. */
	model->random = model->random * 1664525 + 1013904223;
	model->cruise_rounds = CRUISE_ROUNDS - 1 + (model->random >> 24) % 3;
	enter(model, ZDP_MODEL_CRUISE, now_ns);
}

void zdp_model_restart(struct zdp_congestion_state *state, uint64_t now_ns)
{
	struct zdp_model *model = &state->model;

	/* An idle path has no queue of ours: what is sent into it shows the RTT without a probe. */
	if (model->least_rtt_ns != NONE && now_ns - model->least_rtt_at_ns > RTT_WINDOW_NS)
		model->take_next_rtt = true;
	if (model->phase == ZDP_MODEL_PROBE_RTT) {
		model->take_next_rtt = true;
		cruise(model, now_ns);
	}
	model->extra_began_ns = 0;
}

/* Not before a window limits again: an application that rests tells nothing about the path. */
static void update_rate(struct zdp_model *model, const struct zdp_ack_event *event)
{
	uint64_t sample;

	if (event->rate_interval_ns == 0 || event->rate_interval_ns < model->least_rtt_ns)
		return;
	sample = (uint64_t)((unsigned __int128)event->rate_bytes * SECOND_NS /
			    event->rate_interval_ns);
	if (!event->app_limited || sample >= model->rate.samples[0].value)
		zdp_windowed_max_add(&model->rate, RATE_ROUNDS, model->round, sample);
}

/* How much more is acknowledged at a time than the rate explains (draft section 5.5.9). */
static void update_extra(struct zdp_model *model, const struct zdp_ack_event *event)
{
	uint64_t expected = product(rate(model), event->now_ns - model->extra_began_ns);

	if (model->extra_began_ns == 0 || model->extra_bytes <= expected) {
		model->extra_began_ns = event->now_ns;
		model->extra_bytes = expected = 0;
	}
	model->extra_bytes += event->acked_bytes;
	zdp_windowed_max_add(&model->extra_acked, EXTRA_ROUNDS, model->round,
			     model->extra_bytes - smaller(expected, model->extra_bytes));
}

/* The peer says how long it waited with its ACK; it cannot make the RTT less than one seen. */
static uint64_t path_rtt(const struct zdp_ack_event *event)
{
	uint64_t rtt = event->rtt_ns - smaller(event->ack_delay_ns, event->rtt_ns);

	return smaller(larger(rtt, event->least_rtt_ns), event->rtt_ns);
}

static void update_rtt(struct zdp_model *model, const struct zdp_ack_event *event)
{
	uint64_t rtt;

	if (event->rtt_ns == 0)
		return;
	rtt = larger(path_rtt(event), 1000);
	model->round_least_rtt_ns = smaller(model->round_least_rtt_ns, rtt);
	if (model->phase == ZDP_MODEL_PROBE_RTT)
		model->probe_least_rtt_ns = smaller(model->probe_least_rtt_ns, rtt);
	if (rtt <= model->least_rtt_ns || model->take_next_rtt) {
		model->take_next_rtt = false;
		model->least_rtt_ns = rtt;
		model->least_rtt_at_ns = event->now_ns;
	}
}

/* A path that became longer looks like a queue of our own making, and the window, made for the short
 * path, would starve it until the RTT's window ends. So when the RTT stays higher than our own queue
 * can make it, the probe comes early. */
static void suspect(struct zdp_model *model)
{
	if (model->round_least_rtt_ns != NONE &&
	    model->round_least_rtt_ns > percent(model->least_rtt_ns, 175) + 2 * MS_NS)
		model->slow_rounds++;
	else
		model->slow_rounds = 0;
	model->queueing = model->round_least_rtt_ns != NONE &&
			  model->round_least_rtt_ns >
				  percent(model->least_rtt_ns, QUEUEING_GAIN) + 2 * MS_NS;
	model->round_least_rtt_ns = NONE;
}

static bool new_round(struct zdp_model *model, const struct zdp_ack_event *event)
{
	if (event->rate_interval_ns == 0 || event->rate_prior_delivered < model->round_end_delivered)
		return false;
	model->round++;
	model->round_end_delivered = event->delivered;
	suspect(model);
	return true;
}

static bool above_chance(uint64_t part, uint64_t all, uint64_t share_percent)
{
	uint64_t scaled = 100 * part, expected = share_percent * all;

	return scaled > expected &&
	       (scaled - expected) * (scaled - expected) > 4 * 100 * share_percent * all;
}

static void too_much(struct zdp_congestion_state *state, const struct zdp_ack_event *event)
{
	struct zdp_model *model = &state->model;
	uint64_t in_flight = smaller(model->test_in_flight, model->ceiling);

	/* What an application happened to have in flight is no measure of what the path can hold: a
	 * direction that carries only acknowledgements would be held down to a few packets. */
	if (event->app_limited)
		return;
	if (model->undo_lost == 0)
		model->undo_ceiling = model->ceiling;
	model->undo_lost += model->test_lost_packets;
	model->ceiling = larger(percent(in_flight, BETA), least_window(state));
	model->ceiling_step = 0;
	model->rate_bound = larger(percent(rate(model), BETA), LEAST_RATE);
	if (model->phase == ZDP_MODEL_STARTUP) {
		model->full = true;
		enter(model, ZDP_MODEL_DRAIN, event->now_ns);
	} else if (model->phase == ZDP_MODEL_UP) {
		enter(model, ZDP_MODEL_DOWN, event->now_ns);
	}
}

/* Most of what was too much has arrived after all: reordering. */
static void undo(struct zdp_model *model, uint32_t spurious_packets)
{
	model->undo_spurious += spurious_packets;
	if (model->undo_lost == 0 || 2 * model->undo_spurious < model->undo_lost)
		return;
	model->ceiling = model->undo_ceiling;
	model->rate_bound = NONE;
	model->undo_lost = model->undo_spurious = 0;
}

static void test_losses(struct zdp_congestion_state *state, const struct zdp_ack_event *event,
			bool round)
{
	struct zdp_model *model = &state->model;
	bool early = false;
	uint64_t all;

	model->test_acked_packets += event->acked_packets;
	model->test_lost_packets += event->lost_packets;
	model->test_lost_packets -= smaller(event->spurious_packets, model->test_lost_packets);
	model->test_ce_packets += event->ce_packets;
	if (event->spurious_packets)
		undo(model, event->spurious_packets);
	model->test_in_flight = larger(model->test_in_flight,
				       larger(event->lost_in_flight, event->in_flight_before));
	all = model->test_acked_packets + model->test_lost_packets;
	/* While it tries for more, it stops as soon as a whole round would not be enough to excuse it. */
	if (model->phase == ZDP_MODEL_UP || model->phase == ZDP_MODEL_STARTUP)
		early = above_chance(model->test_lost_packets,
				     larger(all, model->test_in_flight / state->packet_bytes),
				     LOSS_PERCENT);
	if (all < TEST_PACKETS || (!early && !round))
		return;
	if (above_chance(model->test_lost_packets, all, LOSS_PERCENT) ||
	    above_chance(model->test_ce_packets, all, CE_PERCENT))
		too_much(state, event);
	model->test_acked_packets = model->test_lost_packets = model->test_ce_packets = 0;
	model->test_in_flight = 0;
}

/* A TCP inside that fills the path by itself leaves room in our window, and would so keep the queue in
 * the path, where nothing manages it: a round in which the RTT never came down tells of that. */
static void test_full(struct zdp_model *model, const struct zdp_ack_event *event)
{
	if (model->full || (event->app_limited && !model->queueing))
		return;
	if (model->rate.samples[0].value >= percent(model->full_rate, FULL_GROWTH)) {
		model->full_rate = model->rate.samples[0].value;
		model->full_rounds = 0;
		return;
	}
	if (++model->full_rounds < FULL_ROUNDS)
		return;
	model->full = true;
	enter(model, ZDP_MODEL_DRAIN, event->now_ns);
}

/* While the ceiling limits, UP goes on and the ceiling rises faster each round: what is over, be it
 * an outage or another flow, is soon made up for. */
static void raise_ceiling(struct zdp_congestion_state *state, const struct zdp_ack_event *event)
{
	struct zdp_model *model = &state->model;

	if (model->ceiling == NONE || !event->window_limited)
		return;
	model->ceiling_step = model->ceiling_step ? 2 * model->ceiling_step
						  : larger(state->packet_bytes, model->ceiling / 16);
	model->ceiling_step = smaller(model->ceiling_step, model->ceiling);
	model->ceiling += model->ceiling_step;
	if (model->ceiling > 4 * window_for(state, WINDOW_GAIN))
		model->ceiling = NONE;
}

/* Two rounds: one to put a quarter more on the way, one to see whether it is delivered. When it is, UP
 * goes on with a larger gain, as in STARTUP: a path that became wider is filled in a few rounds. */
static void look_up(struct zdp_congestion_state *state, const struct zdp_ack_event *event)
{
	struct zdp_model *model = &state->model;

	raise_ceiling(state, event);
	if (model->round - model->phase_began_round < UP_ROUNDS)
		return;
	if (model->rate.samples[0].value < percent(model->full_rate, UP_GROWTH)) {
		enter(model, ZDP_MODEL_DOWN, event->now_ns);
		return;
	}
	model->full_rate = model->rate.samples[0].value;
	model->phase_began_round = model->round;
	model->up_gain = smaller(model->up_gain + model->up_gain / 4, STARTUP_GAIN);
}

static void enter_up(struct zdp_model *model, uint64_t now_ns)
{
	model->rate_bound = NONE;
	model->ceiling_step = 0;
	model->undo_lost = model->undo_spurious = 0;
	model->full_rate = model->rate.samples[0].value;
	model->up_gain = UP_GAIN;
	enter(model, ZDP_MODEL_UP, now_ns);
}

static void cycle(struct zdp_congestion_state *state, const struct zdp_ack_event *event, bool round)
{
	struct zdp_model *model = &state->model;
	uint64_t rounds = model->round - model->phase_began_round;
	bool drained = event->in_flight <= path_bytes(model) + slack(state);

	switch (model->phase) {
	case ZDP_MODEL_DRAIN:
	case ZDP_MODEL_DOWN:
		if (drained || rounds >= PHASE_ROUNDS)
			cruise(model, event->now_ns);
		break;
	case ZDP_MODEL_CRUISE:
		if (rounds >= model->cruise_rounds)
			enter_up(model, event->now_ns);
		break;
	case ZDP_MODEL_UP:
		if (round)
			look_up(state, event);
		break;
	default:
		break;
	}
}

static void probe_rtt(struct zdp_congestion_state *state, const struct zdp_ack_event *event)
{
	struct zdp_model *model = &state->model;
	bool old = event->now_ns - model->least_rtt_at_ns > RTT_WINDOW_NS;
	bool suspicious = model->slow_rounds >= SUSPICION_ROUNDS &&
			  event->now_ns - model->probed_at_ns > SUSPICION_NS;

	if (model->phase != ZDP_MODEL_PROBE_RTT) {
		if (!model->full || !(old || suspicious))
			return;
		model->probe_least_rtt_ns = NONE;
		model->probed_at_ns = event->now_ns;
		enter(model, ZDP_MODEL_PROBE_RTT, event->now_ns);
		return;
	}
	/* One round to drain, one to measure. */
	if (event->now_ns - model->phase_began_ns < PROBE_RTT_NS ||
	    model->round - model->phase_began_round < 2)
		return;
	if (model->probe_least_rtt_ns != NONE)
		model->least_rtt_ns = model->probe_least_rtt_ns;
	model->least_rtt_at_ns = model->probed_at_ns = event->now_ns;
	model->slow_rounds = 0;
	cruise(model, event->now_ns);
}

static void set_window(struct zdp_congestion_state *state, const struct zdp_ack_event *event)
{
	struct zdp_model *model = &state->model;
	uint64_t target = window_for(state, WINDOW_GAIN), most = model->ceiling;

	/* Without pacing only the window can try for more. */
	if (model->phase == ZDP_MODEL_UP && model->least_rtt_ns < UNPACED_RTT_NS)
		target = percent(target, model->up_gain);
	if (model->full)
		state->window = smaller(state->window + event->acked_bytes, target);
	else if (state->window < target || event->delivered < zdp_initial_window(state->packet_bytes))
		state->window += event->acked_bytes;
	if (model->phase == ZDP_MODEL_DRAIN || model->phase == ZDP_MODEL_DOWN)
		most = smaller(most, window_for(state, 100));
	if (model->phase == ZDP_MODEL_PROBE_RTT)
		most = smaller(most, percent(path_bytes(model), PROBE_RTT_GAIN));
	else if (model->phase != ZDP_MODEL_UP && model->ceiling != NONE)
		most = smaller(most, percent(model->ceiling, HEADROOM));
	state->window = larger(smaller(state->window, most), least_window(state));
}

static uint64_t pacing_gain(const struct zdp_model *model, uint64_t in_flight)
{
	switch (model->phase) {
	case ZDP_MODEL_STARTUP:
		return STARTUP_GAIN;
	case ZDP_MODEL_DRAIN:
		return DRAIN_GAIN;
	case ZDP_MODEL_UP: /* what is already too much in flight is not made more */
		return in_flight < percent(path_bytes(model), model->up_gain) ? model->up_gain : 100;
	case ZDP_MODEL_DOWN:
		return DOWN_GAIN;
	default:
		return 100;
	}
}

static void set_pacing(struct zdp_congestion_state *state, const struct zdp_ack_event *event)
{
	struct zdp_model *model = &state->model;
	uint64_t paced = percent(rate(model), pacing_gain(model, event->in_flight));

	if (model->least_rtt_ns == NONE)
		return;
	if (model->least_rtt_ns < UNPACED_RTT_NS) {
		state->pacing_rate = 0;
		return;
	}
	/* A tunnel is seldom full when it begins; the rate that was seen then is the application's. */
	if (!model->full)
		paced = larger(paced, product(state->window, 5 * SECOND_NS / 4 * SECOND_NS /
							     model->least_rtt_ns));
	state->pacing_rate = larger(paced, LEAST_RATE);
}

void zdp_model_event(struct zdp_congestion_state *state, const struct zdp_ack_event *event)
{
	struct zdp_model *model = &state->model;
	bool round = new_round(model, event);

	update_rtt(model, event);
	update_rate(model, event);
	update_extra(model, event);
	test_losses(state, event, round);
	if (round)
		test_full(model, event);
	cycle(state, event, round);
	probe_rtt(state, event);
	set_window(state, event);
	set_pacing(state, event);
}

/* The window is the least (RFC 9002 section 7.6.2) and grows from there as in slow start, up to what
 * the model says: an outage has not changed the path's rate, and where it has, the model notices. */
void zdp_model_persistent(struct zdp_congestion_state *state, uint64_t now_ns)
{
	struct zdp_model *model = &state->model;

	state->window = least_window(state);
	model->least_rtt_at_ns = now_ns;
	model->test_acked_packets = model->test_lost_packets = 0;
}

const char *zdp_model_phase_name(const struct zdp_congestion_state *state)
{
	static const char *const names[] = {"startup", "drain", "cruise", "probe up", "probe down",
					    "probe RTT"};

	return names[state->model.phase];
}
