/* SPDX-License-Identifier: Apache-2.0 */
/* CUBIC (RFC 9438) with HyStart++ (RFC 9406), in bytes. */
#include "congestion.h"

#define MS_NS 1000000ULL
#define SECOND_NS 1000000000ULL
#define MIN_PACKETS 2 /* RFC 9002 section 7.2 */
#define BETA_PERCENT 70
#define UNPACED_RTT_NS MS_NS
/* HyStart++ */
#define LEAST_THRESHOLD_NS (4 * MS_NS)
#define MOST_THRESHOLD_NS (16 * MS_NS)
#define THRESHOLD_DIVISOR 8
#define ROUND_SAMPLES 8
#define GROWTH_DIVISOR 4
#define CONSERVATIVE_ROUNDS 5

static bool in_slow_start(const struct zdp_congestion_state *state)
{
	return state->window < state->cubic.slow_start_threshold;
}

void zdp_cubic_begin(struct zdp_congestion_state *state)
{
	state->cubic.slow_start_threshold = UINT64_MAX;
	state->cubic.round_least_rtt_ns = state->cubic.last_round_least_rtt_ns = UINT64_MAX;
}

void zdp_cubic_restart(struct zdp_congestion_state *state, uint64_t now_ns)
{
	struct zdp_cubic *cubic = &state->cubic;

	/* Time without traffic is not time in which the window was tried (RFC 9438 section 5.8). */
	if (cubic->epoch_ns && cubic->last_event_ns && now_ns > cubic->last_event_ns)
		cubic->epoch_ns += now_ns - cubic->last_event_ns;
	cubic->last_event_ns = now_ns;
}

static uint64_t cube_root(uint64_t value)
{
	uint64_t root = 0;

	for (int bit = 20; bit >= 0; bit--) {
		uint64_t tried = root | 1ULL << bit;

		if (tried * tried * tried <= value)
			root = tried;
	}
	return root;
}

/* W_cubic(t) of RFC 9438 section 4.2, C = 0.4 packets/s^3. */
static uint64_t cubic_window(const struct zdp_congestion_state *state, uint64_t elapsed_ns)
{
	double distance_s = ((double)elapsed_ns - (double)state->cubic.origin_ns) / SECOND_NS;
	double window = (double)state->cubic.window_max +
			0.4 * state->packet_bytes * distance_s * distance_s * distance_s;

	return window < 0 ? 0 : window > 1e15 ? (uint64_t)1e15 : (uint64_t)window;
}

static void begin_epoch(struct zdp_congestion_state *state, uint64_t now_ns)
{
	struct zdp_cubic *cubic = &state->cubic;

	cubic->epoch_ns = now_ns;
	cubic->estimate = state->window;
	cubic->origin_ns = 0;
	if (state->window >= cubic->window_max)
		cubic->window_max = state->window;
	else /* K in ms: the cube root of 2.5 (W_max - cwnd) s^3, in ms^3 */
		cubic->origin_ns = MS_NS * cube_root((cubic->window_max - state->window) /
						     state->packet_bytes * 2500000000ULL);
}

static void avoid_congestion(struct zdp_congestion_state *state, const struct zdp_ack_event *event)
{
	struct zdp_cubic *cubic = &state->cubic;
	uint64_t elapsed, target, alpha_permille;

	if (cubic->epoch_ns == 0)
		begin_epoch(state, event->now_ns);
	elapsed = event->now_ns - cubic->epoch_ns;
	target = cubic_window(state, elapsed + event->smoothed_rtt_ns);
	if (target < state->window)
		target = state->window;
	if (target > state->window + state->window / 2)
		target = state->window + state->window / 2;
	/* Alpha: 3 (1 - beta) / (1 + beta), and 1 once the old window is reached (section 4.3). */
	alpha_permille = cubic->estimate < cubic->window_prior ? 529 : 1000;
	cubic->estimate += event->acked_bytes * state->packet_bytes / state->window *
			   alpha_permille / 1000;
	if (cubic_window(state, elapsed) < cubic->estimate && cubic->estimate > state->window)
		state->window = cubic->estimate;
	else
		state->window += (target - state->window) * event->acked_bytes / state->window;
}

static void hystart_round(struct zdp_cubic *cubic, const struct zdp_ack_event *event)
{
	if (event->rate_prior_delivered < cubic->round_end_delivered)
		return;
	cubic->round_end_delivered = event->delivered + event->in_flight;
	cubic->last_round_least_rtt_ns = cubic->round_least_rtt_ns;
	cubic->round_least_rtt_ns = UINT64_MAX;
	cubic->round_samples = 0;
	if (cubic->conservative)
		cubic->conservative_rounds++;
}

static void hystart(struct zdp_congestion_state *state, const struct zdp_ack_event *event)
{
	struct zdp_cubic *cubic = &state->cubic;
	uint64_t last = cubic->last_round_least_rtt_ns, threshold = last / THRESHOLD_DIVISOR;

	if (event->rtt_ns == 0)
		return;
	hystart_round(cubic, event);
	last = cubic->last_round_least_rtt_ns;
	cubic->round_samples += event->acked_packets; /* one ACK is for many: count what it acknowledges */
	if (event->rtt_ns < cubic->round_least_rtt_ns)
		cubic->round_least_rtt_ns = event->rtt_ns;
	if (cubic->round_samples < ROUND_SAMPLES || last == UINT64_MAX)
		return;
	threshold = last / THRESHOLD_DIVISOR;
	threshold = threshold < LEAST_THRESHOLD_NS ? LEAST_THRESHOLD_NS
		  : threshold > MOST_THRESHOLD_NS  ? MOST_THRESHOLD_NS : threshold;
	if (!cubic->conservative && cubic->round_least_rtt_ns >= last + threshold) {
		cubic->conservative = true;
		cubic->baseline_rtt_ns = cubic->round_least_rtt_ns;
		cubic->conservative_rounds = 0;
	} else if (cubic->conservative && cubic->round_least_rtt_ns < cubic->baseline_rtt_ns) {
		cubic->conservative = false;
	} else if (cubic->conservative && cubic->conservative_rounds >= CONSERVATIVE_ROUNDS) {
		cubic->slow_start_threshold = state->window;
	}
}

static void reduce(struct zdp_congestion_state *state, uint64_t now_ns)
{
	struct zdp_cubic *cubic = &state->cubic;
	uint64_t least = (uint64_t)MIN_PACKETS * state->packet_bytes;

	cubic->undo_window = state->window;
	cubic->undo_threshold = cubic->slow_start_threshold;
	cubic->undo_window_max = cubic->window_max;
	cubic->undo_lost = cubic->undo_spurious = 0;
	cubic->recovery_start_ns = now_ns;
	cubic->epoch_ns = 0;
	cubic->window_prior = state->window;
	/* Fast convergence (section 4.7). */
	cubic->window_max = state->window < cubic->window_max
				    ? state->window * (100 + BETA_PERCENT) / 200 : state->window;
	state->window = state->window * BETA_PERCENT / 100;
	if (state->window < least)
		state->window = least;
	cubic->slow_start_threshold = state->window;
	cubic->conservative = false;
}

/* All that was lost came after all (section 4.9). */
static void undo(struct zdp_congestion_state *state)
{
	struct zdp_cubic *cubic = &state->cubic;

	if (cubic->undo_window > state->window) {
		state->window = cubic->undo_window;
		cubic->slow_start_threshold = cubic->undo_threshold;
		cubic->window_max = cubic->undo_window_max;
		cubic->epoch_ns = 0;
	}
	cubic->undo_window = 0;
}

static void set_pacing(struct zdp_congestion_state *state, const struct zdp_ack_event *event)
{
	uint64_t rtt_us = event->smoothed_rtt_ns / 1000;

	state->pacing_rate = 0;
	if (event->smoothed_rtt_ns >= UNPACED_RTT_NS)
		state->pacing_rate =
			state->window * (in_slow_start(state) ? 2000000 : 1250000) / rtt_us;
}

static void grow(struct zdp_congestion_state *state, const struct zdp_ack_event *event)
{
	struct zdp_cubic *cubic = &state->cubic;
	bool used = event->window_limited ||
		    (in_slow_start(state) && 2 * event->in_flight_before >= state->window);

	if (!used) { /* RFC 9002 section 7.8 */
		zdp_cubic_restart(state, event->now_ns);
		return;
	}
	if (!in_slow_start(state)) {
		avoid_congestion(state, event);
		return;
	}
	state->window += cubic->conservative ? event->acked_bytes / GROWTH_DIVISOR : event->acked_bytes;
	hystart(state, event);
}

void zdp_cubic_event(struct zdp_congestion_state *state, const struct zdp_ack_event *event)
{
	struct zdp_cubic *cubic = &state->cubic;

	if ((event->lost_packets && event->lost_sent_ns > cubic->recovery_start_ns) ||
	    (event->ce_packets && event->largest_sent_ns > cubic->recovery_start_ns)) {
		reduce(state, event->now_ns);
		if (event->ce_packets) /* a mark is never for nothing */
			cubic->undo_window = 0;
	}
	cubic->undo_lost += event->lost_packets;
	cubic->undo_spurious += event->spurious_packets;
	if (event->spurious_packets && cubic->undo_window && cubic->undo_spurious >= cubic->undo_lost)
		undo(state);
	if (event->acked_packets && event->largest_sent_ns > cubic->recovery_start_ns)
		grow(state, event);
	cubic->last_event_ns = event->now_ns;
	set_pacing(state, event);
}

void zdp_cubic_persistent(struct zdp_congestion_state *state)
{
	state->window = (uint64_t)MIN_PACKETS * state->packet_bytes;
	state->cubic.recovery_start_ns = 0;
	state->cubic.epoch_ns = 0;
	state->cubic.undo_window = 0;
}

const char *zdp_cubic_phase(const struct zdp_congestion_state *state)
{
	if (in_slow_start(state))
		return state->cubic.conservative ? "conservative slow start" : "slow start";
	return "avoidance";
}
