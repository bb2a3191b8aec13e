/* SPDX-License-Identifier: Apache-2.0 */
/* Packets between the kernel and a connector: to a service or a network behind one, and back.
 * The policy has judged them on the client's side of the kernel; here the client's flow must be
 * there, and what passes is counted for the connector. */
#ifndef ZGATE_POLICY_CONNECTOR_H
#define ZGATE_POLICY_CONNECTOR_H

static __always_inline void zg_name_flow(struct zg_verdict *v, const struct zg_subject *subject)
{
	const __u64 verdict = subject->flow->verdict;

	v->flags |= ZG_VERDICT_KNOWN_FLOW | (subject->related ? ZG_VERDICT_RELATED : 0);
	v->rule = verdict >> 32;
	v->revision = verdict;
}

/* The flow of a packet that goes on to a connector, which its client has sent, or of which an ICMP
 * error speaks: that client's own, or of somebody on the way back, who is no client. */
static __always_inline int zg_find_onward(struct __sk_buff *skb, const struct zg_packet *p,
					  struct zg_verdict *v, struct zg_subject *subject,
					  struct zg_translation *t, __u64 now_ns)
{
	const struct zg_client *client;
	__u32 backend = 0;

	subject->related = p->icmp == ZG_ICMP_ERROR;
	if (!subject->related)
		zg_flow_key(p, ZG_UP, &subject->key);
	else if (!zg_quoted_key(skb, p, ZG_UP, &subject->key, t, &backend))
		return ZG_DROP_UNSOLICITED;
	if (subject->related && !zg_is_same(&subject->key.client, &p->source) &&
	    zg_find_client(p, ZG_UP))
		return ZG_DROP_UNSOLICITED;
	client = zg_find_holder(p->family, &subject->key.client);
	if (!client)
		return ZG_DROP_UNSOLICITED;
	v->client_index = client->index;
	v->direction = ZG_UP;
	subject->flow = zg_find_flow(&subject->key, client, now_ns, false);
	if (!subject->flow)
		return ZG_DROP_UNSOLICITED;
	zg_name_flow(v, subject);
	return ZG_DROP_NONE;
}

/* The offer that the flow goes by: its own while that may be used, else one chosen now. An ICMP
 * error is about what was, and chooses nothing. */
static __always_inline const struct zg_offer *zg_find_backend(const struct zg_subject *subject,
							      struct zg_verdict *v, __u32 number,
							      bool dry_run)
{
	const __u32 before = subject->flow->backend;
	const struct zg_offer *offer = zg_find_offer(before - 1);
	const struct zg_service *service;
	__u32 best;

	if (zg_is_usable(offer, number))
		return offer;
	service = zg_find_service(number);
	if (subject->related || !service)
		return NULL;
	best = zg_choose_offer(service, number);
	if (best == ZG_NO_OFFER)
		return NULL;
	if (!dry_run)
		best = zg_give_flow(subject->flow, before, best, &v->flags);
	offer = zg_find_offer(best);
	return zg_is_usable(offer, number) ? offer : NULL;
}

static __always_inline int zg_send_to_service(const struct zg_packet *p, struct zg_verdict *v,
					      const struct zg_subject *subject,
					      struct zg_translation *t, __u32 number, bool dry_run)
{
	const struct zg_offer *offer = zg_find_backend(subject, v, number, dry_run);

	if (!offer)
		return ZG_DROP_NO_BACKEND;
	v->client_index = offer->client_index;
	v->direction = ZG_DOWN;
	t->from = p->destination;
	t->to = p->family == 4 ? offer->address4 : offer->address6;
	t->outer_at = zg_address_at(p, p->start, false);
	t->outer = 1;
	t->quoted = subject->related;
	return ZG_DROP_NONE;
}

/* Egress, to what no client holds. The flow first: what the verifier has to walk for it, it walks
 * once. */
static __always_inline int zg_decide_onward(struct __sk_buff *skb, struct zg_packet *p,
					    struct zg_verdict *v, struct zg_translation *t,
					    bool dry_run, __u64 now_ns)
{
	const struct zg_endpoint *endpoint;
	const struct zg_network *network;
	struct zg_subject subject;
	int reason = ZG_DROP_FRAGMENT_WITHOUT_FIRST;

	if (p->fragmentation != ZG_LATER_FRAGMENT || zg_recall_fragment(p, now_ns))
		reason = zg_find_onward(skb, p, v, &subject, t, now_ns);
	endpoint = zg_find_endpoint(p->family, &p->destination);
	if (endpoint) {
		if (endpoint->kind == ZG_ENDPOINT_OFFER)
			return ZG_DROP_NOT_A_DESTINATION;
		if (endpoint->kind != ZG_ENDPOINT_SERVICE)
			return ZG_DROP_NO_CLIENT;
		if (!reason)
			reason = zg_send_to_service(p, v, &subject, t, endpoint->number, dry_run);
	} else {
		network = zg_find_network(p->family, &p->destination);
		if (!network)
			return ZG_DROP_NO_CLIENT;
		if (!reason && network->client_index == ZG_NO_CLIENT)
			return ZG_DROP_NO_BACKEND;
		if (!reason) {
			v->client_index = network->client_index;
			v->direction = ZG_DOWN;
		}
	}
	if (!reason && p->fragmentation == ZG_FIRST_FRAGMENT && !dry_run)
		zg_remember_fragment(p, now_ns);
	return reason;
}

/* Where a packet that no client sent comes from; false: from no connector. Of an offer, the service
 * takes its place at once. *backend is the offer, plus 1, or 0 for a network. */
static __always_inline bool zg_find_origin(struct zg_packet *p, struct zg_verdict *v,
					   struct zg_translation *t, __u32 *backend)
{
	const struct zg_endpoint *endpoint = zg_find_endpoint(p->family, &p->source);
	const struct zg_network *network;
	const struct zg_service *service;
	const struct zg_offer *offer;

	if (!endpoint) {
		network = zg_find_network(p->family, &p->source);
		if (network)
			v->client_index = network->client_index;
		return network && v->client_index != ZG_NO_CLIENT;
	}
	offer = endpoint->kind == ZG_ENDPOINT_OFFER ? zg_find_offer(endpoint->number) : NULL;
	service = offer ? zg_find_service(offer->service_plus_1 - 1) : NULL;
	if (!service)
		return false;
	v->client_index = offer->client_index;
	*backend = endpoint->number + 1;
	t->from = p->source;
	t->to = p->family == 4 ? service->address4 : service->address6;
	t->outer_at = zg_address_at(p, p->start, true);
	t->outer = 1;
	p->source = t->to;
	return true;
}

/* A connector speaks for its own offers and networks only: an ICMP error quotes what went there. */
static __always_inline bool zg_is_answer(const struct zg_packet *p, const struct zg_verdict *v,
					 const struct zg_subject *subject, __u32 backend)
{
	const struct zg_network *network;

	if (!subject->flow || subject->flow->backend != backend)
		return false;
	if (!subject->related)
		return true;
	if (backend)
		return zg_is_same(&subject->key.remote, &p->source);
	network = zg_find_network(p->family, &subject->key.remote);
	return network && network->client_index == v->client_index;
}

/* Ingress, from what no client holds: a connector answers, and begins nothing. What an ICMP error
 * speaks of comes first, see zg_decide_onward(). */
static __always_inline int zg_decide_answer(struct __sk_buff *skb, struct zg_packet *p,
					    struct zg_verdict *v, struct zg_translation *t,
					    bool dry_run, __u64 now_ns)
{
	const struct zg_client *client = zg_find_client(p, ZG_DOWN);
	struct zg_subject subject = {};
	__u32 backend = 0;

	if (client)
		zg_find_related(skb, p, client, ZG_DOWN, now_ns, &subject, t);
	if (!zg_find_origin(p, v, t, &backend))
		return ZG_DROP_NO_CLIENT;
	if (!client)
		return ZG_DROP_UNSOLICITED;
	if (p->fragmentation == ZG_LATER_FRAGMENT && !zg_recall_fragment(p, now_ns))
		return ZG_DROP_FRAGMENT_WITHOUT_FIRST;
	zg_find_own(p, client, ZG_DOWN, now_ns, &subject);
	if (!zg_is_answer(p, v, &subject, backend))
		return ZG_DROP_UNSOLICITED;
	zg_name_flow(v, &subject);
	if (p->fragmentation == ZG_FIRST_FRAGMENT && !dry_run)
		zg_remember_fragment(p, now_ns);
	return ZG_DROP_NONE;
}

/* A dry run asks what will become of a packet: does anybody offer the service, or lead to the
 * network? */
static __always_inline bool zg_has_offer(const struct zg_subject *subject)
{
	const struct zg_endpoint *endpoint =
		zg_find_endpoint(subject->key.family, &subject->key.remote);
	const struct zg_network *network;
	const struct zg_service *service;

	if (!endpoint) {
		network = zg_find_network(subject->key.family, &subject->key.remote);
		return !network || network->client_index != ZG_NO_CLIENT;
	}
	if (endpoint->kind != ZG_ENDPOINT_SERVICE)
		return true;
	if (subject->flow &&
	    zg_is_usable(zg_find_offer(subject->flow->backend - 1), endpoint->number))
		return true;
	service = zg_find_service(endpoint->number);
	return service && zg_choose_offer(service, endpoint->number) != ZG_NO_OFFER;
}

#endif
