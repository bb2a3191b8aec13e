/* SPDX-License-Identifier: Apache-2.0 */
/* What a packet is about: a client and its flow. */
#ifndef ZGATE_POLICY_SUBJECT_H
#define ZGATE_POLICY_SUBJECT_H

/* A packet's flow, or the flow that an ICMP error speaks of. */
struct zg_subject {
	struct zg_flow_key key;
	struct zg_flow *flow;
	bool related;
};

static __always_inline const struct zg_client *zg_find_holder(__u8 family,
							      const struct zg_address *address)
{
	const struct zg_client_key key = { .family = family, .address = *address };

	return zg_lookup(zg_map(clients), &key);
}

static __always_inline const struct zg_client *zg_find_client(const struct zg_packet *p,
							      const int direction)
{
	return zg_find_holder(p->family, direction == ZG_UP ? &p->source : &p->destination);
}

/* One load: slot and revision always belong together. */
static __always_inline bool zg_read_active(struct zg_active *active)
{
	const __u32 zero = 0;
	const __u64 *word = zg_lookup(zg_map(active), &zero);

	if (!word)
		return false;
	*(__u64 *)active = *(const volatile __u64 *)word;
	return active->slot_plus_1 != 0;
}

/* A connector, and who tells it of what is too large, quote the offer's address: the flow has the
 * service's. *backend is the offer, plus 1, as a flow has it. */
static __always_inline void zg_name_service(struct zg_flow_key *key, struct zg_translation *t,
					    __u32 *backend)
{
	const struct zg_endpoint *endpoint = zg_find_endpoint(key->family, &key->remote);
	const struct zg_service *service;
	const struct zg_offer *offer;

	if (!endpoint || endpoint->kind != ZG_ENDPOINT_OFFER)
		return;
	offer = zg_find_offer(endpoint->number);
	if (!offer)
		return;
	service = zg_find_service(offer->service_plus_1 - 1);
	if (!service)
		return;
	*backend = endpoint->number + 1;
	t->from = key->remote;
	t->to = key->family == 4 ? service->address4 : service->address6;
	key->remote = t->to;
}

/* Room for a quoted packet, in a map and not on the stack: what lies there the verifier does not
 * follow, and finds many ways through the headers to be one. */
static __always_inline struct zg_packet *zg_new_quoted(const struct zg_packet *p)
{
	const __u32 zero = 0;
	struct zg_packet *quoted = zg_lookup(zg_map(scratch), &zero);

	if (!quoted)
		return NULL;
	__builtin_memset(quoted, 0, sizeof(*quoted));
	quoted->start = p->upper + 8;
	quoted->end = p->end;
	return quoted;
}

/* An ICMP error quotes a packet that went the other way, between the client and the remote
 * that the error is about; down, anybody on the path may have sent it. *backend: the offer that
 * it quotes in the place of a service. */
static __always_inline bool zg_quoted_key(struct __sk_buff *skb, const struct zg_packet *p,
					  const int direction, struct zg_flow_key *key,
					  struct zg_translation *t, __u32 *backend)
{
	struct zg_packet *quoted = zg_new_quoted(p);

	if (!quoted || zg_parse(skb, quoted, true) || quoted->fragmentation == ZG_LATER_FRAGMENT)
		return false;
	if (quoted->icmp == ZG_ICMP_ERROR)
		return false;
	if (!zg_flow_key(quoted, direction == ZG_UP ? ZG_DOWN : ZG_UP, key))
		return false;
	t->quoted_at = zg_address_at(p, p->upper + 8, direction == ZG_UP);
	t->quoted_upper = quoted->upper;
	t->quoted_protocol = quoted->protocol;
	if (direction == ZG_UP)
		return zg_is_same(&quoted->source, &p->destination);
	zg_name_service(key, t, backend);
	return zg_is_same(&key->client, &p->destination);
}

/* The flow that an ICMP error speaks of, if it speaks of one. */
static __always_inline void zg_find_related(struct __sk_buff *skb, const struct zg_packet *p,
					    const struct zg_client *client, const int direction,
					    __u64 now_ns, struct zg_subject *subject,
					    struct zg_translation *t)
{
	__u32 backend = 0;

	subject->flow = NULL;
	subject->related = false;
	if (p->icmp != ZG_ICMP_ERROR ||
	    !zg_quoted_key(skb, p, direction, &subject->key, t, &backend))
		return;
	if (direction == ZG_UP && !zg_is_same(&subject->key.client, &p->source))
		return;
	subject->flow = zg_find_flow(&subject->key, client, now_ns, false);
	if (subject->flow && backend && subject->flow->backend != backend)
		subject->flow = NULL;
	subject->related = subject->flow != NULL;
	t->quoted = subject->related && backend;
}

/* Else the packet's own flow. */
static __always_inline void zg_find_own(const struct zg_packet *p, const struct zg_client *client,
					const int direction, __u64 now_ns,
					struct zg_subject *subject)
{
	const bool opening = direction == ZG_UP &&
			     (p->tcp_flags & (ZG_TCP_SYN | ZG_TCP_ACK)) == ZG_TCP_SYN;

	if (!subject->flow && zg_flow_key(p, direction, &subject->key))
		subject->flow = zg_find_flow(&subject->key, client, now_ns, opening);
}

#endif
