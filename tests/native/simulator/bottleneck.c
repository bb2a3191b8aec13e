/* SPDX-License-Identifier: Apache-2.0 */
/* The path, as it is at the moment, and what becomes of a packet on it. */

static double link_rate(const struct simulation *sim)
{
	const struct config *config = sim->config;

	return config->rate_at_s && sim->now >= ns(config->rate_at_s) ? config->new_rate : config->rate;
}

static uint32_t packet_bytes(const struct flow *flow)
{
	return flow->config->packet_bytes ? (uint32_t)flow->config->packet_bytes : PACKET;
}

static uint64_t one_way(const struct simulation *sim, int flow)
{
	const struct config *config = sim->config;
	double delay = config->delay_at_s && sim->now >= ns(config->delay_at_s) ? config->new_delay_s
										 : config->delay_s;

	return ns(delay + config->flows[flow].extra_delay_s);
}

/* When work that begins at `from` is done, if the link stands still now and then. */
static uint64_t served(const struct simulation *sim, uint64_t from, uint64_t work)
{
	uint64_t every = ns(sim->config->stall_every_s), stall = ns(sim->config->stall_s), phase, room;

	if (every == 0)
		return from + work;
	for (;;) {
		phase = from % every;
		if (phase >= every - stall) {
			from += every - phase;
			continue;
		}
		room = every - stall - phase;
		if (work <= room)
			return from + work;
		work -= room;
		from += room;
	}
}

static bool measured(const struct simulation *sim)
{
	return sim->now >= ns(sim->config->measure_from_s);
}

static double loss_now(const struct simulation *sim)
{
	const struct config *config = sim->config;

	if (config->loss_to_s && sim->now >= ns(config->loss_from_s) && sim->now < ns(config->loss_to_s))
		return config->loss_then;
	return config->loss;
}

static bool outage(const struct simulation *sim)
{
	return sim->now >= ns(sim->config->outage_from_s) && sim->now < ns(sim->config->outage_to_s);
}

static void transmit(struct simulation *sim, int flow, uint64_t number, enum event_kind kind)
{
	const struct config *config = sim->config;
	double rate = link_rate(sim);
	uint64_t wait = sim->link_free > sim->now ? sim->link_free - sim->now : 0;
	double backlog, bytes = packet_bytes(&sim->flows[flow]);
	bool overtakes = chance(sim) < config->reorder, lost = chance(sim) < loss_now(sim);
	uint64_t done;

	if (outage(sim) || lost) {
		sim->flows[flow].result->really_lost_packets++;
		return;
	}
	while (sim->leaving_first != sim->leaving_last &&
	       sim->leaving[sim->leaving_first % RING] <= sim->now)
		sim->leaving_first++;
	/* As in a socket's buffer, a small packet takes the room of a whole one. */
	backlog = (double)(sim->leaving_last - sim->leaving_first) * PACKET;
	if (backlog + PACKET > config->buffer_bytes) {
		sim->result->dropped_packets++;
		sim->flows[flow].result->really_lost_packets++;
		return;
	}
	done = served(sim, sim->now + wait, (uint64_t)(bytes * 1e9 / rate));
	sim->link_free = sim->leaving[sim->leaving_last++ % RING] = done;
	if (measured(sim)) {
		uint64_t queued = done - sim->now, slot = queued / 25000;

		sim->waits++;
		sim->wait_sum += (double)queued;
		sim->wait_histogram[slot < 40000 ? slot : 39999]++;
		if ((double)queued / 1e9 > sim->result->wait_max_s)
			sim->result->wait_max_s = (double)queued / 1e9;
		sim->link_bytes += bytes;
	}
	push(sim, (struct event){.at = done + (overtakes ? 0 : one_way(sim, flow)), .kind = kind,
				 .flow = flow, .number = number,
				 .ce = config->mark_above_bytes && backlog > config->mark_above_bytes});
}
