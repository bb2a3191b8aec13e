/* SPDX-License-Identifier: Apache-2.0 */
/* A network of one bottleneck, event by event, with the engine's own recovery at its senders.
 *
 *   sender -> [chance of loss] -> bottleneck (rate, buffer, stalls) -> delay -> receiver
 *          <- delay <- [chance of loss] <- ACKs, every so many packets or after a time
 *
 * A flow is the engine's (its source is greedy, limited, or a Reno TCP inside of the tunnel behind the
 * engine's queue), or a Reno TCP of its own. Deterministic: the same seed gives the same run. */
#include <stdlib.h>
#include <string.h>

#include "queue.h"
#include "ranges.h"
#include "recovery.h"

#define MAX_FLOWS 4
#define BUCKETS 600
#define BUCKET_NS 100000000ULL
#define SECOND 1000000000ULL
#define RING 65536
#define PACKET 1400
#define INNER 1340

enum flow_kind { ENGINE, RENO, ENGINE_WITH_RENO_INSIDE };

struct flow_config {
	int32_t kind, congestion;
	int32_t packet_bytes; /* of the engine's packets, at most PACKET; 0: PACKET */
	double start_s, stop_s;
	double source_rate; /* bytes/s of an application-limited source; 0: greedy */
	double source_rate_at_s, new_source_rate; /* the source changes; 0: never */
	double on_s, off_s; /* the source sends and rests in turn; 0: always on */
	double extra_delay_s; /* each way */
};

struct config {
	double seconds, measure_from_s;
	double rate, buffer_bytes, delay_s;
	double loss, ack_loss, reorder;
	double mark_above_bytes; /* CE above so much in the buffer; 0: never */
	double rate_at_s, new_rate; /* the bottleneck changes; 0: never */
	double delay_at_s, new_delay_s;
	double outage_from_s, outage_to_s;
	double loss_from_s, loss_to_s, loss_then; /* another chance of loss for a while */
	double stall_every_s, stall_s; /* the bottleneck stands still: a receiver without a CPU */
	double timer_slack_s; /* senders wake up so much late */
	double ack_delay_s;
	int32_t ack_packets, foreign_every, seed, flow_count;
	int32_t tell_path_changed;
	struct flow_config flows[MAX_FLOWS];
};

struct flow_result {
	double delivered_bytes; /* in the measured time */
	double sent_packets, lost_packets, spurious_packets, really_lost_packets;
	double queue_drops, probe_timeouts, persistent, ce_packets;
	double window_bytes, least_rtt_s, smoothed_rtt_s, packet_threshold, memory_bytes, pacing;
	double queue_wait_mean_s, queue_wait_p95_s; /* in the engine's queue, Reno inside */
	double buckets[BUCKETS]; /* bytes delivered per 100 ms */
	char phase[32];
};

struct result {
	double wait_mean_s, wait_p95_s, wait_max_s; /* in the bottleneck, measured time */
	double dropped_packets, utilisation;
	struct flow_result flows[MAX_FLOWS];
};

struct reno {
	double window, threshold;
	uint64_t next, una, highest, recovery_point, in_flight, last_progress_ns;
	uint8_t acked[RING];
};

enum event_kind { ARRIVE, FOREIGN, ACK, WAKE, RENO_ACK, ACK_TIMER };

struct event {
	uint64_t at, order;
	enum event_kind kind;
	int flow;
	uint64_t number;
	bool ce;
	struct zdp_ack *ack;
};

struct flow {
	const struct flow_config *config;
	struct flow_result *result;
	struct zdp_recovery *recovery;
	struct zdp_queue *queue;
	struct reno reno;
	uint64_t next_number, wake_at, budget_ns;
	double budget;
	uint64_t inner_of[RING]; /* inner number by outer number */
	/* receiver */
	struct zdp_ranges received;
	struct zdp_ecn_counts ecn;
	uint32_t unacked;
	uint64_t ack_timer_at, largest_at;
	uint64_t waits;
	uint32_t wait_histogram[4000]; /* of 0.25 ms */
	double wait_sum;
};

struct simulation {
	const struct config *config;
	struct result *result;
	uint64_t now, link_free, order;
	uint64_t *leaving; /* when what is in the buffer will have left */
	size_t leaving_first, leaving_last;
	uint64_t random;
	struct event *heap;
	size_t count, capacity;
	struct flow flows[MAX_FLOWS];
	uint64_t waits;
	double wait_sum, link_bytes;
	uint32_t wait_histogram[40000]; /* of 25 us */
	bool path_told;
};

static double chance(struct simulation *sim)
{
	sim->random ^= sim->random << 13;
	sim->random ^= sim->random >> 7;
	sim->random ^= sim->random << 17;
	return (double)(sim->random >> 11) / 9007199254740992.0;
}

static uint64_t ns(double seconds)
{
	return (uint64_t)(seconds * 1e9);
}

static bool before(const struct event *a, const struct event *b)
{
	return a->at < b->at || (a->at == b->at && a->order < b->order);
}

static void push(struct simulation *sim, struct event event)
{
	size_t at = sim->count++;

	if (sim->count > sim->capacity) {
		sim->capacity = sim->capacity ? sim->capacity * 2 : 1024;
		sim->heap = realloc(sim->heap, sim->capacity * sizeof(event));
	}
	event.order = sim->order++;
	while (at && before(&event, &sim->heap[(at - 1) / 2])) {
		sim->heap[at] = sim->heap[(at - 1) / 2];
		at = (at - 1) / 2;
	}
	sim->heap[at] = event;
}

static struct event pop(struct simulation *sim)
{
	struct event first = sim->heap[0], last = sim->heap[--sim->count];
	size_t at = 0, child;

	while ((child = 2 * at + 1) < sim->count) {
		if (child + 1 < sim->count && before(&sim->heap[child + 1], &sim->heap[child]))
			child++;
		if (!before(&sim->heap[child], &last))
			break;
		sim->heap[at] = sim->heap[child];
		at = child;
	}
	sim->heap[at] = last;
	return first;
}

static double link_rate(const struct simulation *sim)
{
	const struct config *config = sim->config;

	return config->rate_at_s && sim->now >= ns(config->rate_at_s) ? config->new_rate : config->rate;
}

static double source_rate(const struct simulation *sim, const struct flow_config *config)
{
	bool changed = config->source_rate_at_s && sim->now >= ns(config->source_rate_at_s);

	return changed ? config->new_source_rate : config->source_rate;
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

/* Reno */

static void reno_begin(struct reno *reno)
{
	reno->window = 10;
	reno->threshold = 1e9;
}

static void reno_lost(struct reno *reno, uint64_t number)
{
	reno->in_flight--;
	if (number < reno->recovery_point)
		return;
	reno->recovery_point = reno->next;
	reno->window = reno->window / 2 < 2 ? 2 : reno->window / 2;
	reno->threshold = reno->window;
}

static void reno_ack(struct reno *reno, uint64_t number, uint64_t now)
{
	reno->last_progress_ns = now;
	if (number < reno->una || reno->acked[number % RING])
		return;
	reno->acked[number % RING] = 1;
	reno->in_flight--;
	if (number > reno->highest)
		reno->highest = number;
	if (number >= reno->recovery_point)
		reno->window += reno->window < reno->threshold ? 1 : 1 / reno->window;
	if (reno->window > 30000)
		reno->window = 30000;
	while (reno->una < reno->next && (reno->acked[reno->una % RING] || reno->una + 3 <= reno->highest)) {
		if (!reno->acked[reno->una % RING])
			reno_lost(reno, reno->una);
		reno->una++;
	}
}

static bool reno_may_send(const struct reno *reno)
{
	return (double)reno->in_flight + 1 <= reno->window && reno->next - reno->una < RING - 1;
}

static uint64_t reno_send(struct reno *reno)
{
	reno->acked[reno->next % RING] = 0;
	reno->in_flight++;
	return reno->next++;
}

static void reno_timeout(struct reno *reno, uint64_t now)
{
	if (reno->in_flight == 0 || now - reno->last_progress_ns < SECOND / 2)
		return;
	reno->threshold = reno->window / 2 < 2 ? 2 : reno->window / 2;
	reno->window = 1;
	reno->in_flight = 0;
	reno->una = reno->recovery_point = reno->next;
	reno->last_progress_ns = now;
}

/* The engine's sender */

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

/* Receivers */

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
