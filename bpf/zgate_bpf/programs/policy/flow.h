/* SPDX-License-Identifier: Apache-2.0 */
/* Flows that were allowed, and fragments of packets whose first one was.
 *
 * Both tables push out what was not used for longest. Nothing opens by that: a packet from
 * the client is judged again, one towards it is unsolicited. */
#ifndef ZGATE_POLICY_FLOW_H
#define ZGATE_POLICY_FLOW_H

#define ZG_SECOND_NS 1000000000ull
#define ZG_TCP_ANSWERED_S (24 * 3600)
#define ZG_TCP_UNANSWERED_S 120
#define ZG_TCP_CLOSED_S 30
#define ZG_UDP_S 180
#define ZG_ICMP_S 30
#define ZG_OTHER_S 600
#define ZG_FRAGMENT_S 60                 /* RFC 8200 section 4.5: how long reassembly waits */

static __always_inline bool zg_is_closed(const struct zg_flow *flow)
{
	const __u8 both = ZG_FLOW_CLIENT_FIN | ZG_FLOW_REMOTE_FIN;

	return flow->state & ZG_FLOW_RESET || (flow->state & both) == both;
}

static __always_inline __u64 zg_idle_limit_ns(const struct zg_flow *flow, __u8 protocol)
{
	if (protocol == ZG_TCP) {
		if (zg_is_closed(flow))
			return ZG_TCP_CLOSED_S * ZG_SECOND_NS;
		return (flow->state & ZG_FLOW_ANSWERED ? ZG_TCP_ANSWERED_S
						       : ZG_TCP_UNANSWERED_S) * ZG_SECOND_NS;
	}
	if (protocol == ZG_UDP)
		return ZG_UDP_S * ZG_SECOND_NS;
	if (protocol == ZG_ICMP4 || protocol == ZG_ICMP6)
		return ZG_ICMP_S * ZG_SECOND_NS;
	return ZG_OTHER_S * ZG_SECOND_NS;
}

static __always_inline bool zg_is_older(__u64 seen_ns, __u64 now_ns, __u64 limit_ns)
{
	return now_ns > seen_ns && now_ns - seen_ns > limit_ns;
}

/* The key of the flow that the packet would belong to; false if packets of its kind belong
 * to none. Down, of all ICMP, only an echo reply answers something. */
static __always_inline bool zg_flow_key(const struct zg_packet *p, const int direction,
					struct zg_flow_key *key)
{
	key->family = p->family;
	key->protocol = p->protocol;
	key->zero = 0;
	if (direction == ZG_DOWN) {
		key->client = p->destination;
		key->remote = p->source;
		key->client_port = p->destination_port;
		key->remote_port = p->source_port;
		return p->icmp == ZG_ICMP_NONE || p->icmp == ZG_ICMP_ECHO_REPLY;
	}
	key->client = p->source;
	key->remote = p->destination;
	key->client_port = p->source_port;
	key->remote_port = p->destination_port;
	if (p->icmp != ZG_ICMP_NONE && p->icmp != ZG_ICMP_ECHO_REQUEST) {
		key->client_port = p->service;
		key->remote_port = ZG_NO_REPLY;
	}
	return true;
}

/* The flow if there is one that still counts: of this holder of the address, not idle for
 * too long, and not closed when a new connection begins on the same ports. */
static __always_inline struct zg_flow *zg_find_flow(const struct zg_flow_key *key,
						    const struct zg_client *client, __u64 now_ns,
						    bool opening)
{
	struct zg_flow *flow = zg_lookup(zg_map(flows), key);

	if (!flow || flow->epoch != client->epoch || flow->client_index != client->index)
		return NULL;
	if (zg_is_older(flow->seen_ns, now_ns, zg_idle_limit_ns(flow, key->protocol)))
		return NULL;
	return opening && zg_is_closed(flow) ? NULL : flow;
}

static __always_inline __u8 zg_next_state(__u8 state, const struct zg_packet *p,
					  const int direction)
{
	if (direction == ZG_DOWN)
		state |= ZG_FLOW_ANSWERED;
	if (p->tcp_flags & ZG_TCP_FIN)
		state |= direction == ZG_UP ? ZG_FLOW_CLIENT_FIN : ZG_FLOW_REMOTE_FIN;
	if (p->tcp_flags & ZG_TCP_RST)
		state |= ZG_FLOW_RESET;
	return state;
}

/* Written only when something changes: a flow's two directions may run on two CPUs. */
static __always_inline void zg_touch_flow(struct zg_flow *flow, const struct zg_packet *p,
					  const int direction, __u64 now_ns)
{
	const __u8 state = zg_next_state(flow->state, p, direction);

	if (state != flow->state)
		flow->state = state;
	if (zg_is_older(flow->seen_ns, now_ns, ZG_SECOND_NS))
		flow->seen_ns = now_ns;
}

/* Writes *flow, new or under a new verdict, as a new entry and never into the one that is
 * there: an entry may be pushed out and become another flow's at any moment, which must not
 * inherit a verdict. */
static __always_inline bool zg_put_flow(const struct zg_flow_key *key, const struct zg_flow *flow)
{
	return bpf_map_update_elem(zg_map(flows), (void *)key, (void *)flow, BPF_ANY) == 0;
}

static __always_inline void zg_fragment_key(const struct zg_packet *p, struct zg_fragment_key *key)
{
	key->family = p->family;
	key->protocol = p->family == 4 ? p->protocol : 0;
	key->zero = 0;
	key->identification_be = p->identification_be;
	key->source = p->source;
	key->destination = p->destination;
}

/* If there is no room the rest of the packet is dropped, and counted as what it then is. */
static __always_inline void zg_remember_fragment(const struct zg_packet *p, __u64 now_ns)
{
	struct zg_fragment_key key;
	const struct zg_fragment fragment = {
		.seen_ns = now_ns,
		.source_port = p->source_port,
		.destination_port = p->destination_port,
		.service = p->service,
		.protocol = p->protocol,
		.icmp = p->icmp,
	};

	zg_fragment_key(p, &key);
	bpf_map_update_elem(zg_map(fragments), &key, (void *)&fragment, BPF_ANY);
}

/* Gives a later fragment what its first one said: it is judged as that one, every time. */
static __always_inline bool zg_recall_fragment(struct zg_packet *p, __u64 now_ns)
{
	const struct zg_fragment *first;
	struct zg_fragment_key key;

	zg_fragment_key(p, &key);
	first = zg_lookup(zg_map(fragments), &key);
	if (!first || zg_is_older(first->seen_ns, now_ns, ZG_FRAGMENT_S * ZG_SECOND_NS))
		return false;
	p->source_port = first->source_port;
	p->destination_port = first->destination_port;
	p->service = first->service;
	p->protocol = first->protocol;
	p->icmp = first->icmp;
	return true;
}

#endif
