/* SPDX-License-Identifier: Apache-2.0 */
/* What a verdict leaves behind: counters, and an event for whoever reads along. */
#ifndef ZGATE_POLICY_ACCOUNT_H
#define ZGATE_POLICY_ACCOUNT_H

struct zg_verdict {
	__u32 reason;
	__u32 flags;
	__u32 client_index;
	__u32 rule;
	__u32 revision;
};

static __always_inline void zg_count_packet(struct __sk_buff *skb, const struct zg_packet *p,
					    const struct zg_verdict *v, const int direction)
{
	const __u32 segments = zg_segments(skb, p);
	const __u64 bytes = p->end - p->start + (__u64)(segments - 1) * p->header_bytes;
	struct zg_counters *counters;

	if (v->reason)
		zg_count(zg_map(drops), v->reason, segments);
	counters = zg_lookup(zg_map(counters), &v->client_index);
	if (!counters)
		return;
	if (v->reason) {
		if (direction == ZG_UP)
			counters->up_dropped_packets += segments;
		else
			counters->down_dropped_packets += segments;
		return;
	}
	if (direction == ZG_UP) {
		counters->up_packets += segments;
		counters->up_bytes += bytes;
	} else {
		counters->down_packets += segments;
		counters->down_bytes += bytes;
	}
	if (v->flags & ZG_VERDICT_NEW_FLOW)
		counters->flows += 1;
}

/* So many events per client and second. Two CPUs may let a few more through; what is left
 * out is counted exactly. NULL: not this one. */
static __always_inline struct zg_gate *zg_open_gate(__u32 client_index, bool denied, __u64 now_ns)
{
	const __u32 limit = denied ? ZG_DENIED_EVENTS_PER_S : ZG_ALLOWED_EVENTS_PER_S;
	const __u32 window = now_ns >> 30;
	__u32 index = client_index < ZG_MAX_CLIENTS ? client_index : ZG_MAX_CLIENTS;
	struct zg_gate *gate = zg_lookup(zg_map(gates), &index);
	__u32 *sent;

	if (!gate)
		return NULL;
	if (gate->window != window) {
		gate->window = window;
		gate->sent[0] = 0;
		gate->sent[1] = 0;
	}
	sent = denied ? &gate->sent[1] : &gate->sent[0];
	if (*sent < limit) {
		*sent += 1;
		return gate;
	}
	__sync_fetch_and_add(&gate->suppressed, 1);
	zg_count(zg_map(statistics), ZG_STATISTIC_EVENTS_SUPPRESSED, 1);
	return NULL;
}

static __always_inline void zg_tell(const struct zg_packet *p, const struct zg_verdict *v,
				    const int direction, __u64 now_ns)
{
	const struct zg_gate *gate = zg_open_gate(v->client_index, v->reason != 0, now_ns);
	struct zg_event *event;

	if (!gate)
		return;
	event = bpf_ringbuf_reserve(zg_map(events), sizeof(*event), 0);
	if (!event) {
		zg_count(zg_map(statistics), ZG_STATISTIC_EVENTS_LOST, 1);
		return;
	}
	event->time_ns = now_ns;
	event->client_index = v->client_index;
	event->rule = v->rule;
	event->revision = v->revision;
	event->length_bytes = p->end - p->start;
	event->suppressed = gate->suppressed;
	event->kind = v->reason ? ZG_EVENT_DENIED : ZG_EVENT_FLOW_ALLOWED;
	event->reason = v->reason;
	event->direction = direction;
	event->family = p->family;
	event->protocol = p->protocol;
	event->zero = 0;
	event->source_port = p->source_port;
	event->destination_port = p->icmp == ZG_ICMP_NONE ? p->destination_port : p->service;
	event->zero2 = 0;
	event->source = p->source;
	event->destination = p->destination;
	bpf_ringbuf_submit(event, 0);
}

#endif
