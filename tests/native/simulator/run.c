/* SPDX-License-Identifier: Apache-2.0 */
/* One run, from the flows' begin to their results. */

static void step(struct simulation *sim, const struct event *event)
{
	struct flow *flow = &sim->flows[event->flow];

	sim->now = event->at;
	if (sim->config->tell_path_changed && !sim->path_told &&
	    sim->now >= ns(sim->config->delay_at_s)) {
		sim->path_told = true;
		for (int i = 0; i < sim->config->flow_count; i++)
			if (sim->flows[i].recovery)
				zdp_recovery_path_changed(sim->flows[i].recovery);
	}
	switch (event->kind) {
	case ARRIVE:
		receive(sim, event);
		break;
	case FOREIGN:
		if (flow->received.count == 0 || event->number > flow->received.items[0].last)
			flow->largest_at = sim->now;
		zdp_ranges_add(&flow->received, event->number, event->number);
		break;
	case ACK:
		got_ack(sim, event);
		break;
	case RENO_ACK:
		reno_ack(&flow->reno, event->number, sim->now);
		run_flow(sim, event->flow);
		break;
	case ACK_TIMER:
		if (flow->ack_timer_at == event->at)
			send_ack(sim, event->flow);
		break;
	case WAKE:
		if (flow->wake_at == event->at)
			run_flow(sim, event->flow);
		break;
	}
}

static void dropped(void *owner, const struct zdp_queued *packet, enum zdp_queue_drop why)
{
	(void)packet;
	(void)why;
	((struct flow *)owner)->result->queue_drops++;
}

static void begin_flow(struct simulation *sim, int index)
{
	struct flow *flow = &sim->flows[index];
	struct zdp_queue_limits limits = {5000000, 100000000, 4 << 20, 1514};
	struct zdp_recovery_config config = {
		.max_packet_bytes = PACKET,
		.peer_max_ack_delay_ns = 25000000,
		.peer_ack_delay_exponent = 3,
	};

	flow->config = &sim->config->flows[index];
	flow->result = &sim->result->flows[index];
	reno_begin(&flow->reno);
	if (flow->config->kind != RENO) {
		config.congestion = (enum zdp_congestion)flow->config->congestion;
		flow->recovery = zdp_recovery_new(&config);
		flow->queue = zdp_queue_new(&limits, dropped, NULL, flow);
	}
	push(sim, (struct event){.at = ns(flow->config->start_s), .kind = WAKE, .flow = index});
	flow->wake_at = ns(flow->config->start_s);
}

static double percentile(const uint32_t *histogram, size_t slots, uint64_t all, double slot_s)
{
	uint64_t seen = 0;

	for (size_t i = 0; i < slots; i++)
		if ((seen += histogram[i]) >= all - all / 20)
			return (double)(i + 1) * slot_s;
	return 0;
}

static void end_flow(struct flow *flow)
{
	struct flow_result *result = flow->result;
	struct zdp_recovery_stats stats;

	if (flow->waits) {
		result->queue_wait_mean_s = flow->wait_sum / (double)flow->waits / 1e9;
		result->queue_wait_p95_s = percentile(flow->wait_histogram, 4000, flow->waits, 250e-6);
	}
	if (flow->recovery == NULL) {
		result->window_bytes = flow->reno.window * PACKET;
		return;
	}
	zdp_recovery_stats(flow->recovery, &stats);
	result->sent_packets = (double)stats.sent_packets;
	result->lost_packets = (double)stats.lost_packets;
	result->spurious_packets = (double)stats.spurious_packets;
	result->probe_timeouts = (double)stats.probe_timeouts;
	result->persistent = (double)stats.persistent_congestion;
	result->ce_packets = (double)stats.ce_packets;
	result->window_bytes = (double)stats.window_bytes;
	result->least_rtt_s = (double)stats.least_rtt_ns / 1e9;
	result->smoothed_rtt_s = (double)stats.smoothed_rtt_ns / 1e9;
	result->packet_threshold = stats.packet_threshold;
	result->memory_bytes = (double)stats.memory_bytes;
	result->pacing = (double)stats.pacing_bytes_per_s;
	strncpy(result->phase, stats.phase, sizeof(result->phase) - 1);
	zdp_recovery_free(flow->recovery);
	zdp_queue_free(flow->queue);
	zdp_ranges_free(&flow->received);
}

int simulate(const struct config *config, struct result *result)
{
	struct simulation *sim = calloc(1, sizeof(*sim));
	uint64_t end = ns(config->seconds);

	memset(result, 0, sizeof(*result));
	sim->leaving = calloc(RING, sizeof(*sim->leaving));
	sim->config = config;
	sim->result = result;
	sim->random = 88172645463325252ULL + (uint64_t)config->seed * 1000003;
	for (int i = 0; i < config->flow_count; i++)
		begin_flow(sim, i);
	while (sim->count && sim->heap[0].at <= end) {
		struct event event = pop(sim);

		step(sim, &event);
	}
	while (sim->count)
		free(pop(sim).ack);
	for (int i = 0; i < config->flow_count; i++)
		end_flow(&sim->flows[i]);
	if (sim->waits) {
		result->wait_mean_s = sim->wait_sum / (double)sim->waits / 1e9;
		result->wait_p95_s = percentile(sim->wait_histogram, 40000, sim->waits, 25e-6);
	}
	result->utilisation = sim->link_bytes /
			      (config->rate * (config->seconds - config->measure_from_s));
	free(sim->heap);
	free(sim->leaving);
	free(sim);
	return 0;
}
