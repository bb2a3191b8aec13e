/* SPDX-License-Identifier: Apache-2.0 */
/* Receivers, and what their ACKs do. */

static void send_ack(struct simulation *sim, int index)
{
	struct flow *flow = &sim->flows[index];
	struct zdp_ack *ack;

	flow->unacked = 0;
	flow->ack_timer_at = 0;
	if (chance(sim) < sim->config->ack_loss || outage(sim))
		return;
	ack = calloc(1, sizeof(*ack));
	ack->delay = (sim->now - flow->largest_at) / 1000 >> 3;
	ack->count = flow->received.count < 32 ? flow->received.count : 32;
	memcpy(ack->ranges, flow->received.items, ack->count * sizeof(struct zdp_range));
	ack->cut = flow->received.count > ack->count;
	ack->has_ecn = sim->config->mark_above_bytes > 0;
	ack->ecn = flow->ecn;
	push(sim, (struct event){.at = sim->now + one_way(sim, index), .kind = ACK, .flow = index,
				 .ack = ack});
}

static void receive(struct simulation *sim, const struct event *event)
{
	struct flow *flow = &sim->flows[event->flow];
	uint64_t bucket = sim->now / BUCKET_NS;

	if (measured(sim))
		flow->result->delivered_bytes += packet_bytes(flow);
	if (bucket < BUCKETS)
		flow->result->buckets[bucket] += packet_bytes(flow);
	if (flow->config->kind == RENO) {
		if (chance(sim) >= sim->config->ack_loss && !outage(sim))
			push(sim, (struct event){.at = sim->now + one_way(sim, event->flow),
						 .kind = RENO_ACK, .flow = event->flow,
						 .number = event->number});
		return;
	}
	if (flow->config->kind == ENGINE_WITH_RENO_INSIDE &&
	    flow->inner_of[event->number % RING] != UINT64_MAX)
		push(sim, (struct event){.at = sim->now + one_way(sim, event->flow), .kind = RENO_ACK,
					 .flow = event->flow,
					 .number = flow->inner_of[event->number % RING]});
	if (flow->received.count == 0 || event->number > flow->received.items[0].last)
		flow->largest_at = sim->now;
	zdp_ranges_add(&flow->received, event->number, event->number);
	flow->ecn.ce += event->ce;
	flow->ecn.ect0 += !event->ce;
	if (++flow->unacked >= (uint32_t)sim->config->ack_packets) {
		send_ack(sim, event->flow);
	} else if (flow->ack_timer_at == 0) {
		flow->ack_timer_at = sim->now + ns(sim->config->ack_delay_s);
		push(sim, (struct event){.at = flow->ack_timer_at, .kind = ACK_TIMER,
					 .flow = event->flow});
	}
}

static void got_ack(struct simulation *sim, const struct event *event)
{
	struct flow *flow = &sim->flows[event->flow];
	struct zdp_ack_outcome outcome;

	zdp_recovery_heard(flow->recovery, sim->now);
	zdp_recovery_ack(flow->recovery, event->ack, flow->next_number, sim->now, &outcome);
	if (outcome.bad)
		abort();
	free(event->ack);
	run_flow(sim, event->flow);
}
