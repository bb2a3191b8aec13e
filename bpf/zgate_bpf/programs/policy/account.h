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
	__u32 direction;                 /* as the client sees it that this is counted for */
};

static __always_inline void zg_count_packet(struct __sk_buff *skb, const struct zg_packet *p,
					    const struct zg_verdict *v)
{
	const __u32 segments = zg_segments(skb, p);
	const __u64 bytes = zg_wire_bytes(p, segments);
	struct zg_counters *counters;

	if (v->reason)
		zg_count(zg_map(drops), v->reason, segments);
	counters = zg_lookup(zg_map(counters), &v->client_index);
	if (!counters)
		return;
	if (v->reason) {
		if (v->direction == ZG_UP)
			counters->up_dropped_packets += segments;
		else
			counters->down_dropped_packets += segments;
		return;
	}
	if (v->direction == ZG_UP) {
		counters->up_packets += segments;
		counters->up_bytes += bytes;
	} else {
		counters->down_packets += segments;
		counters->down_bytes += bytes;
	}
	if (v->flags & (ZG_VERDICT_NEW_FLOW | ZG_VERDICT_CHOSEN))
		counters->flows += 1;
}

/* That a limit bites is told once per client and second. */
static __always_inline bool zg_may_tell_limit(__u32 client_index, __u64 now_ns)
{
	struct zg_limiter *limiter = zg_lookup(zg_map(limiters), &client_index);
	__u64 told;

	if (!limiter)
		return false;
	told = *(volatile __u64 *)&limiter->told_ns;
	return zg_is_older(told, now_ns, ZG_SECOND_NS) &&
	       __sync_val_compare_and_swap(&limiter->told_ns, told, now_ns) == told;
}

/* Of everything else, so many per client and second. Two CPUs may let a few more through. */
static __always_inline bool zg_may_tell(struct zg_gate *gate, bool denied, __u64 now_ns)
{
	const __u32 limit = denied ? ZG_DENIED_EVENTS_PER_S : ZG_ALLOWED_EVENTS_PER_S;
	const __u32 window = now_ns >> 30;
	__u32 *sent;

	if (gate->window != window) {
		gate->window = window;
		gate->sent[0] = 0;
		gate->sent[1] = 0;
	}
	sent = denied ? &gate->sent[1] : &gate->sent[0];
	if (*sent >= limit)
		return false;
	*sent += 1;
	return true;
}

/* How many events of this kind were left out, ever, which is counted exactly. NULL: so is
 * this one. */
static __always_inline const __u32 *zg_open_gate(const struct zg_verdict *v, __u64 now_ns)
{
	__u32 index = v->client_index < ZG_MAX_CLIENTS ? v->client_index : ZG_MAX_CLIENTS;
	struct zg_gate *gate = zg_lookup(zg_map(gates), &index);
	const bool limited = zg_is_limited(v->reason);
	__u32 *suppressed;

	if (!gate)
		return NULL;
	suppressed = limited ? &gate->limited_suppressed : &gate->suppressed;
	if (limited ? zg_may_tell_limit(v->client_index, now_ns)
		    : zg_may_tell(gate, v->reason != 0, now_ns))
		return suppressed;
	__sync_fetch_and_add(suppressed, 1);
	zg_count(zg_map(statistics), ZG_STATISTIC_EVENTS_SUPPRESSED, 1);
	return NULL;
}

static __always_inline void zg_tell(const struct zg_packet *p, const struct zg_verdict *v,
				    __u64 now_ns)
{
	const __u32 *suppressed = zg_open_gate(v, now_ns);
	struct zg_event *event;

	if (!suppressed)
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
	event->suppressed = *suppressed;
	event->kind = v->reason ? ZG_EVENT_DENIED : ZG_EVENT_FLOW_ALLOWED;
	event->reason = v->reason;
	event->direction = v->direction;
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
