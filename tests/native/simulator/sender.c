/* SPDX-License-Identifier: Apache-2.0 */
/* Senders: the engine's, fed by a source or by a Reno inside of it, and a Reno alone. */

static double source_rate(const struct simulation *sim, const struct flow_config *config)
{
	bool changed = config->source_rate_at_s && sim->now >= ns(config->source_rate_at_s);

	return changed ? config->new_source_rate : config->source_rate;
}

static void wake_at(struct simulation *sim, int index, uint64_t at)
{
	struct flow *flow = &sim->flows[index];

	if (at == UINT64_MAX || (flow->wake_at > sim->now && flow->wake_at <= at))
		return;
	flow->wake_at = at;
	push(sim, (struct event){.at = at, .kind = WAKE, .flow = index});
}

static bool source_on(const struct simulation *sim, const struct flow_config *config)
{
	double now = (double)sim->now / 1e9, cycle = config->on_s + config->off_s;

	if (now < config->start_s || (config->stop_s && now >= config->stop_s))
		return false;
	if (config->off_s == 0)
		return true;
	now -= config->start_s;
	return now - cycle * (double)(uint64_t)(now / cycle) < config->on_s;
}

static void refill_source(struct simulation *sim, struct flow *flow)
{
	double rate = source_rate(sim, flow->config);

	if (!source_on(sim, flow->config)) {
		flow->budget = 0;
	} else if (rate == 0) {
		flow->budget = 1e12;
	} else {
		flow->budget += rate * (double)(sim->now - flow->budget_ns) / 1e9;
		if (flow->budget > 1 << 20)
			flow->budget = 1 << 20;
	}
	flow->budget_ns = sim->now;
}

static void put_inside(struct simulation *sim, struct flow *flow)
{
	while (source_on(sim, flow->config) && reno_may_send(&flow->reno)) {
		struct zdp_queued *packet = zdp_queued_new(INNER);
		uint64_t number = reno_send(&flow->reno);

		memcpy(packet->data, &number, 8);
		zdp_queue_put(flow->queue, packet, sim->now);
	}
}

static uint32_t batch(struct simulation *sim, struct flow *flow, uint64_t allowance)
{
	uint64_t bytes = packet_bytes(flow), most = allowance / bytes, count = 0;

	if (most > 45)
		most = 45;
	if (flow->config->kind == ENGINE) {
		if (most > (uint64_t)flow->budget / bytes)
			most = (uint64_t)flow->budget / bytes;
		flow->budget -= (double)(most * bytes);
		return (uint32_t)most;
	}
	while (count < most) {
		struct zdp_queued *head = zdp_queue_head(flow->queue, sim->now);
		uint64_t wait;

		if (head == NULL)
			break;
		wait = sim->now - head->enqueued_ns;
		memcpy(&flow->inner_of[(flow->next_number + count) % RING], head->data, 8);
		if (measured(sim)) {
			flow->waits++;
			flow->wait_sum += (double)wait;
			flow->wait_histogram[wait / 250000 < 4000 ? wait / 250000 : 3999]++;
		}
		zdp_queue_done(flow->queue, head, INNER, true);
		count++;
	}
	return (uint32_t)count;
}

static bool source_empty(const struct flow *flow)
{
	return flow->config->kind == ENGINE ? flow->budget < packet_bytes(flow)
					   : zdp_queue_is_empty(flow->queue);
}

static void send_batch(struct simulation *sim, int index, uint32_t count)
{
	struct flow *flow = &sim->flows[index];

	/* Now and then a packet of somebody else's is in between: it is received, and no loss. */
	if (sim->config->foreign_every && chance(sim) * sim->config->foreign_every < 1) {
		if (flow->config->kind != ENGINE)
			for (uint32_t i = count; i; i--)
				flow->inner_of[(flow->next_number + i) % RING] =
					flow->inner_of[(flow->next_number + i - 1) % RING];
		flow->inner_of[flow->next_number % RING] = UINT64_MAX;
		transmit(sim, index, flow->next_number++, FOREIGN);
	}
	for (uint32_t i = 0; i < count; i++)
		transmit(sim, index, flow->next_number + i, ARRIVE);
	zdp_recovery_sent(flow->recovery, flow->next_number, count, packet_bytes(flow),
			  source_empty(flow), sim->now);
	flow->next_number += count;
}

static void run_engine(struct simulation *sim, int index)
{
	struct flow *flow = &sim->flows[index];
	struct zdp_ack_outcome outcome;
	uint64_t allowance = 0, at;
	bool probe = false;

	if (sim->now >= zdp_recovery_deadline(flow->recovery))
		probe = zdp_recovery_timer(flow->recovery, sim->now, &outcome);
	refill_source(sim, flow);
	if (flow->config->kind == ENGINE_WITH_RENO_INSIDE) {
		reno_timeout(&flow->reno, sim->now);
		put_inside(sim, flow);
	}
	if (probe) {
		flow->inner_of[flow->next_number % RING] = UINT64_MAX;
		transmit(sim, index, flow->next_number, ARRIVE);
		zdp_recovery_sent(flow->recovery, flow->next_number++, 1, packet_bytes(flow), false,
				  sim->now);
	}
	while (!source_empty(flow)) {
		uint32_t count;

		allowance = zdp_recovery_allowance(flow->recovery, sim->now);
		if (allowance < packet_bytes(flow) || (count = batch(sim, flow, allowance)) == 0)
			break;
		send_batch(sim, index, count);
	}
	at = zdp_recovery_deadline(flow->recovery);
	wake_at(sim, index, at > sim->now ? at : sim->now + 1000);
	if (!source_empty(flow)) {
		at = zdp_recovery_send_at(flow->recovery, sim->now);
		wake_at(sim, index, at == UINT64_MAX ? at : (at > sim->now ? at : sim->now + 1000) +
							    ns(sim->config->timer_slack_s));
	} else {
		wake_at(sim, index, sim->now + (source_rate(sim, flow->config) && source_on(sim, flow->config)
						? SECOND / 1000 : SECOND / 100));
	}
}

static void run_reno(struct simulation *sim, int index)
{
	struct flow *flow = &sim->flows[index];

	reno_timeout(&flow->reno, sim->now);
	while (source_on(sim, flow->config) && reno_may_send(&flow->reno))
		transmit(sim, index, reno_send(&flow->reno), ARRIVE);
	wake_at(sim, index, sim->now + SECOND / 10);
}

static void run_flow(struct simulation *sim, int index)
{
	if (sim->flows[index].config->kind == RENO)
		run_reno(sim, index);
	else
		run_engine(sim, index);
}
