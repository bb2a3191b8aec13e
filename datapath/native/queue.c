/* SPDX-License-Identifier: Apache-2.0 */
/* FQ-CoDel: flows in turn by deficit round robin, new ones first (RFC 8290), and CoDel in each
 * (RFC 8289).
 *
 * CoDel drops nothing while less than one packet is queued: a link that takes long for one packet has
 * no standing queue to get rid of. That packet is here the largest that the flow has queued lately,
 * a super-packet of up to 64 kB (10 ms at 50 Mbit/s, twice CoDel's target): it came as a whole, and
 * waiting for the one before it is no standing queue. */
#include "queue.h"

#include <stdlib.h>
#include <string.h>

#define FLOWS 32
/* What a packet costs beside its data: against a flood of small ones. */
#define PACKET_COST (sizeof(struct zdp_queued) + 16)

struct flow {
	struct zdp_queued *head, *tail;
	struct zdp_queued *judged; /* the head, if CoDel has let it pass */
	struct flow *next; /* in the list of new or of old flows */
	int64_t deficit;
	uint32_t bytes, largest_bytes;
	bool listed;
	/* CoDel */
	bool dropping;
	uint32_t count, last_count;
	uint64_t first_above_ns, drop_next_ns;
};

struct list {
	struct flow *first, *last;
};

struct zdp_queue {
	struct zdp_queue_limits limits;
	zdp_queue_drop_fn drop;
	zdp_queue_mark_fn mark;
	void *owner;
	struct list fresh, old;
	uint32_t packets, bytes;
	struct flow flows[FLOWS];
};

struct zdp_queue *zdp_queue_new(const struct zdp_queue_limits *limits, zdp_queue_drop_fn drop,
				zdp_queue_mark_fn mark, void *owner)
{
	struct zdp_queue *queue = calloc(1, sizeof(*queue));

	if (queue == NULL)
		return NULL;
	queue->limits = *limits;
	if (queue->limits.quantum_bytes == 0)
		queue->limits.quantum_bytes = 1514; /* RFC 8290 section 4.4.1 */
	queue->drop = drop;
	queue->mark = mark;
	queue->owner = owner;
	return queue;
}

void zdp_queue_free(struct zdp_queue *queue)
{
	if (queue == NULL)
		return;
	for (int i = 0; i < FLOWS; i++)
		for (struct zdp_queued *at = queue->flows[i].head, *next; at; at = next) {
			next = at->next;
			free(at);
		}
	free(queue);
}

struct zdp_queued *zdp_queued_new(uint32_t bytes)
{
	struct zdp_queued *packet = malloc(sizeof(*packet) + bytes);

	if (packet == NULL)
		return NULL;
	memset(packet, 0, sizeof(*packet));
	packet->bytes = bytes;
	return packet;
}

void zdp_queued_free(struct zdp_queued *packet)
{
	free(packet);
}

static void append(struct list *list, struct flow *flow)
{
	flow->next = NULL;
	flow->listed = true;
	if (list->first)
		list->last->next = flow;
	else
		list->first = flow;
	list->last = flow;
}

static struct flow *take_first(struct list *list)
{
	struct flow *flow = list->first;

	list->first = flow->next;
	flow->next = NULL;
	flow->listed = false;
	return flow;
}

/* Takes the packet after `before` out of the flow (NULL: the head). */
static struct zdp_queued *unlink_after(struct zdp_queue *queue, struct flow *flow,
				       struct zdp_queued *before)
{
	struct zdp_queued *packet = before ? before->next : flow->head;

	if (before)
		before->next = packet->next;
	else
		flow->head = packet->next;
	if (packet->next == NULL)
		flow->tail = before;
	if (flow->judged == packet)
		flow->judged = NULL;
	flow->bytes -= packet->bytes;
	queue->bytes -= packet->bytes;
	queue->packets--;
	/* "Lately": it follows what comes downwards by an eighth a packet. */
	if (flow->largest_bytes > packet->bytes)
		flow->largest_bytes -= (flow->largest_bytes - packet->bytes + 7) / 8;
	if (flow->head == NULL)
		flow->largest_bytes = 0;
	return packet;
}

static void drop(struct zdp_queue *queue, struct zdp_queued *packet, enum zdp_queue_drop why)
{
	if (queue->drop)
		queue->drop(queue->owner, packet, why);
	free(packet);
}

static bool is_over(const struct zdp_queue *queue)
{
	return queue->bytes + queue->packets * PACKET_COST > queue->limits.max_bytes;
}

/* The flow that holds most loses its head, but not one that is being sent. */
static bool make_room(struct zdp_queue *queue)
{
	struct flow *longest = NULL;

	for (int i = 0; i < FLOWS; i++) {
		struct flow *flow = &queue->flows[i];
		bool droppable = flow->head && (flow->head != flow->judged || flow->head->next);

		if (droppable && (longest == NULL || flow->bytes > longest->bytes))
			longest = flow;
	}
	if (longest == NULL)
		return false;
	drop(queue, unlink_after(queue, longest, longest->judged), ZDP_QUEUE_DROP_FULL);
	return true;
}

void zdp_queue_put(struct zdp_queue *queue, struct zdp_queued *packet, uint64_t now_ns)
{
	/* The hash needs no salt: who makes collisions makes them in his own session. */
	struct flow *flow = &queue->flows[packet->flow_hash % FLOWS];

	packet->next = NULL;
	packet->enqueued_ns = now_ns;
	if (flow->tail)
		flow->tail->next = packet;
	else
		flow->head = packet;
	flow->tail = packet;
	flow->bytes += packet->bytes;
	if (packet->bytes > flow->largest_bytes)
		flow->largest_bytes = packet->bytes;
	queue->bytes += packet->bytes;
	queue->packets++;
	if (!flow->listed) {
		flow->deficit = queue->limits.quantum_bytes;
		append(&queue->fresh, flow);
	}
	while (is_over(queue) && make_room(queue))
		;
}

static uint64_t square_root(uint64_t value)
{
	uint64_t root = 0;

	for (int bit = 31; bit >= 0; bit--) {
		uint64_t tried = root | 1ULL << bit;

		if (tried * tried <= value)
			root = tried;
	}
	return root;
}

/* interval / sqrt(count) */
static uint64_t control_law(const struct zdp_queue *queue, const struct flow *flow, uint64_t from_ns)
{
	return from_ns + (queue->limits.interval_ns << 8) / square_root((uint64_t)flow->count << 16);
}

/* RFC 8289's dodequeue: whether the head has waited above target for a whole interval. */
static bool is_late(const struct zdp_queue *queue, struct flow *flow, uint64_t now_ns)
{
	const struct zdp_queued *head = flow->head;

	if (head == NULL || now_ns < head->enqueued_ns + queue->limits.target_ns ||
	    flow->bytes <= flow->largest_bytes) {
		flow->first_above_ns = 0;
		return false;
	}
	if (flow->first_above_ns == 0) {
		flow->first_above_ns = now_ns + queue->limits.interval_ns;
		return false;
	}
	return now_ns >= flow->first_above_ns;
}

/* Drops or marks the head; whether it was dropped. */
static bool punish(struct zdp_queue *queue, struct flow *flow)
{
	if (queue->mark && queue->mark(flow->head))
		return false;
	drop(queue, unlink_after(queue, flow, NULL), ZDP_QUEUE_DROP_CODEL);
	return true;
}

static void go_on_dropping(struct zdp_queue *queue, struct flow *flow, uint64_t now_ns)
{
	bool late = is_late(queue, flow, now_ns);

	if (!late)
		flow->dropping = false;
	while (flow->dropping && now_ns >= flow->drop_next_ns) {
		flow->count++;
		if (!punish(queue, flow)) {
			flow->drop_next_ns = control_law(queue, flow, flow->drop_next_ns);
			return;
		}
		if (!is_late(queue, flow, now_ns))
			flow->dropping = false;
		else
			flow->drop_next_ns = control_law(queue, flow, flow->drop_next_ns);
	}
}

static void begin_dropping(struct zdp_queue *queue, struct flow *flow, uint64_t now_ns)
{
	uint32_t since = flow->count - flow->last_count;

	if (!is_late(queue, flow, now_ns))
		return;
	if (punish(queue, flow))
		is_late(queue, flow, now_ns); /* the next one's sojourn counts as well */
	flow->dropping = true;
	/* Dropping ended not long ago: go on near the rate that it had then. */
	flow->count = since > 1 && (int64_t)(now_ns - flow->drop_next_ns) <
					   (int64_t)(16 * queue->limits.interval_ns) ? since : 1;
	flow->last_count = flow->count;
	flow->drop_next_ns = control_law(queue, flow, now_ns);
}

/* CoDel's answer for the flow's head, given once for each packet: when it is first handed out. */
static struct zdp_queued *judge(struct zdp_queue *queue, struct flow *flow, uint64_t now_ns)
{
	if (flow->judged)
		return flow->judged;
	if (flow->dropping)
		go_on_dropping(queue, flow, now_ns);
	else
		begin_dropping(queue, flow, now_ns);
	flow->judged = flow->head;
	return flow->head;
}

struct zdp_queued *zdp_queue_head(struct zdp_queue *queue, uint64_t now_ns)
{
	for (;;) {
		struct list *list = queue->fresh.first ? &queue->fresh : &queue->old;
		struct flow *flow = list->first;
		struct zdp_queued *packet;

		if (flow == NULL)
			return NULL;
		/* What was begun is finished: only new flows come before it. */
		if (flow->deficit <= 0 && !(list == &queue->old && flow->judged &&
					    flow->judged->sent_bytes)) {
			flow->deficit += queue->limits.quantum_bytes;
			append(&queue->old, take_first(list));
			continue;
		}
		packet = judge(queue, flow, now_ns);
		if (packet)
			return packet;
		/* A new flow that is empty takes its turn among the old ones before it may be new
		 * again, or it would starve them (RFC 8290 section 4.2). */
		take_first(list);
		if (list == &queue->fresh && queue->old.first)
			append(&queue->old, flow);
	}
}

void zdp_queue_done(struct zdp_queue *queue, struct zdp_queued *head, uint32_t bytes, bool all)
{
	struct flow *flow = &queue->flows[head->flow_hash % FLOWS];

	flow->deficit -= bytes;
	if (all)
		free(unlink_after(queue, flow, NULL));
}

bool zdp_queue_is_empty(const struct zdp_queue *queue)
{
	return queue->packets == 0;
}

uint32_t zdp_queue_packets(const struct zdp_queue *queue)
{
	return queue->packets;
}

uint32_t zdp_queue_bytes(const struct zdp_queue *queue)
{
	return queue->bytes;
}

static uint32_t mix(uint32_t hash, const uint8_t *at, size_t bytes)
{
	for (size_t i = 0; i + 4 <= bytes; i += 4) {
		uint32_t word;

		memcpy(&word, at + i, 4);
		word *= 0xcc9e2d51U; /* MurmurHash3's steps */
		word = word << 15 | word >> 17;
		hash ^= word * 0x1b873593U;
		hash = (hash << 13 | hash >> 19) * 5 + 0xe6546b64U;
	}
	return hash;
}

static uint32_t finish(uint32_t hash)
{
	hash = (hash ^ hash >> 16) * 0x85ebca6bU;
	hash = (hash ^ hash >> 13) * 0xc2b2ae35U;
	return hash ^ hash >> 16;
}

static bool has_ports(uint8_t protocol)
{
	return protocol == 6 || protocol == 17 || protocol == 132 || protocol == 33 || protocol == 136;
}

/* Extension headers are not walked: those that end hosts send go by flow label and addresses. */
uint32_t zdp_flow_hash(const uint8_t *packet, size_t bytes)
{
	size_t header;
	uint32_t hash;

	if (bytes >= 20 && packet[0] >> 4 == 4) {
		bool fragment = (packet[6] & 0x3f) || packet[7];

		header = (size_t)(packet[0] & 15) * 4;
		hash = mix(packet[9], packet + 12, 8);
		if (!fragment && header >= 20 && has_ports(packet[9]) && bytes >= header + 4)
			hash = mix(hash, packet + header, 4);
		return finish(hash);
	}
	if (bytes >= 40 && packet[0] >> 4 == 6) {
		hash = mix(packet[6], packet + 8, 32);
		if (has_ports(packet[6]) && bytes >= 44)
			return finish(mix(hash, packet + 40, 4));
		return finish(hash ^ (uint32_t)((packet[1] & 15) << 16 | packet[2] << 8 | packet[3]));
	}
	return 0;
}
