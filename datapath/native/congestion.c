/* SPDX-License-Identifier: Apache-2.0 */
#include "congestion.h"

#include <string.h>

uint64_t zdp_initial_window(uint32_t packet_bytes)
{
	uint64_t ten = 10ULL * packet_bytes, two = 2ULL * packet_bytes;
	uint64_t bound = two > 14720 ? two : 14720;

	return ten < bound ? ten : bound;
}

void zdp_congestion_begin(struct zdp_congestion_state *state, enum zdp_congestion kind,
			  uint32_t packet_bytes, uint64_t initial_rtt_ns)
{
	memset(state, 0, sizeof(*state));
	state->kind = kind;
	state->packet_bytes = packet_bytes;
	state->window = zdp_initial_window(packet_bytes);
	if (kind == ZDP_CONGESTION_MODEL)
		zdp_model_begin(state, initial_rtt_ns);
	else if (kind == ZDP_CONGESTION_CUBIC)
		zdp_cubic_begin(state);
	else
		state->window = ZDP_WINDOW_WITHOUT_CONTROL;
}

void zdp_congestion_restart(struct zdp_congestion_state *state, uint64_t now_ns)
{
	if (state->kind == ZDP_CONGESTION_MODEL)
		zdp_model_restart(state, now_ns);
	else if (state->kind == ZDP_CONGESTION_CUBIC)
		zdp_cubic_restart(state, now_ns);
}

void zdp_congestion_event(struct zdp_congestion_state *state, const struct zdp_ack_event *event)
{
	if (state->kind == ZDP_CONGESTION_MODEL)
		zdp_model_event(state, event);
	else if (state->kind == ZDP_CONGESTION_CUBIC)
		zdp_cubic_event(state, event);
}

void zdp_congestion_persistent(struct zdp_congestion_state *state, uint64_t now_ns)
{
	if (state->kind == ZDP_CONGESTION_MODEL)
		zdp_model_persistent(state, now_ns);
	else if (state->kind == ZDP_CONGESTION_CUBIC)
		zdp_cubic_persistent(state);
}

const char *zdp_congestion_phase(const struct zdp_congestion_state *state)
{
	if (state->kind == ZDP_CONGESTION_MODEL)
		return zdp_model_phase_name(state);
	if (state->kind == ZDP_CONGESTION_CUBIC)
		return zdp_cubic_phase(state);
	return "none";
}

uint64_t zdp_congestion_delivery_rate(const struct zdp_congestion_state *state)
{
	return state->kind == ZDP_CONGESTION_MODEL ? zdp_model_rate(state) : 0;
}
