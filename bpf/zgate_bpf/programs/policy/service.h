/* SPDX-License-Identifier: Apache-2.0 */
/* Services: clients name a service's virtual IP, a connector sees the address of its own offer of
 * it. Only packets between the kernel and the connector carry that address:
 *
 *   client -> service  | kernel |  client -> offer    (egress: zg_decide_onward)
 *   service -> client  | kernel |  offer -> client    (ingress: zg_decide_answer)
 *
 * so policy, flow table, routes and connection tracking know services only. Ports never change. A
 * flow keeps the offer that it was given to for as long as that may be used. */
#ifndef ZGATE_POLICY_SERVICE_H
#define ZGATE_POLICY_SERVICE_H

#define ZG_DNS_PORT 53
#define ZG_NO_OFFER 0xFFFFFFFFu

/* What is to be changed in a packet that is let through. */
struct zg_translation {
	struct zg_address from;
	struct zg_address to;
	__u32 outer_at;                  /* where the address lies in the packet's own header */
	__u32 quoted_at;                 /* and in the one that an ICMP error quotes */
	__u32 quoted_upper;
	__u8 quoted_protocol;
	__u8 outer;                      /* whether there is one */
	__u8 quoted;
};

static __always_inline const struct zg_endpoint *zg_find_endpoint(__u8 family,
								  const struct zg_address *address)
{
	const struct zg_client_key key = { .family = family, .address = *address };

	return zg_lookup(zg_map(endpoints), &key);
}

static __always_inline const struct zg_offer *zg_find_offer(__u32 number)
{
	return zg_lookup(zg_map(offers), &number);
}

static __always_inline const struct zg_service *zg_find_service(__u32 number)
{
	return zg_lookup(zg_map(services), &number);
}

/* The longest prefix around the address, and the connector behind which it lies, if any does. */
static __always_inline const struct zg_network *zg_find_network(__u8 family,
								const struct zg_address *address)
{
	const struct zg_network_key key = {
		.bits = 32 + (family == 4 ? 32 : 128),
		.family = family,
		.address = *address,
	};

	return zg_lookup(zg_map(networks), &key);
}

static __always_inline __u32 zg_address_at(const struct zg_packet *p, __u32 start, bool source)
{
	if (p->family == 4)
		return start + (source ? 12 : 16);
	return start + (source ? 8 : 24);
}

/* Questions for names, which the gateway's own addresses answer to every client. */
static __always_inline bool zg_is_dns(__u8 protocol, __u16 service)
{
	return service == ZG_DNS_PORT && (protocol == ZG_UDP || protocol == ZG_TCP);
}

/* Whether a flow of this service may go by this offer. An entry of the flow table may have been
 * another flow's when its offer was written into it. */
static __always_inline bool zg_is_usable(const struct zg_offer *offer, __u32 service)
{
	return offer && offer->service_plus_1 == service + 1 && offer->use != ZG_OFFER_GONE;
}

/* The offer with the fewest open flows of those that take new ones; ZG_NO_OFFER: none does. */
static __always_inline __u32 zg_choose_offer(const struct zg_service *service, __u32 number)
{
	__u32 fewest = 0xFFFFFFFF, best = ZG_NO_OFFER;
	int i;

#pragma unroll
	for (i = 0; i < ZG_OFFERS_PER_SERVICE; i++) {
		const __u32 at = (__u32)service->offers[i] - 1;
		const struct zg_offer *offer = zg_find_offer(at);
		__u32 open_flows;

		if (!offer)
			break;
		if (offer->service_plus_1 != number + 1 || offer->use != ZG_OFFER_UP)
			continue;
		open_flows = *(const volatile __u32 *)&offer->open_flows;
		if (open_flows < fewest) {
			fewest = open_flows;
			best = at;
		}
	}
	return best;
}

/* Gives the flow to an offer, unless another CPU has done so meanwhile: the answer is the number
 * of the offer that it has, whoever chose. The compiler exchanges 8 bytes only: the flow's state,
 * which lies beside, may change while we look, and then we look again. */
static __always_inline __u32 zg_give_flow(struct zg_flow *flow, __u32 before, __u32 best,
					  __u32 *flags)
{
	__u64 *word = (__u64 *)&flow->service;
	struct zg_offer *offer;
	int i;

#pragma unroll
	for (i = 0; i < 2; i++) {
		const __u64 old = *(volatile __u64 *)word;
		union {
			__u64 word;
			struct {
				__u8 state[4];
				__u32 backend;
			};
		} fresh = { .word = old };

		if (fresh.backend != before)
			return fresh.backend - 1;
		fresh.backend = best + 1;
		if (__sync_val_compare_and_swap(word, old, fresh.word) == old)
			break;
	}
	offer = (struct zg_offer *)zg_find_offer(best);
	if (offer)
		__sync_fetch_and_add(&offer->open_flows, 1);
	*flags |= ZG_VERDICT_CHOSEN;
	return best;
}

/* The checksum of the upper layer covers the addresses, too; 0: it has none, or they do not
 * matter to it. */
static __always_inline __u32 zg_checksum_at(__u8 family, __u8 protocol, __u32 upper)
{
	if (protocol == ZG_TCP)
		return upper + 16;
	if (protocol == ZG_UDP)
		return upper + 6;
	return family == 6 && protocol == ZG_ICMP6 ? upper + 2 : 0;
}

static __always_inline int zg_store_address(struct __sk_buff *skb, __u8 family, __u32 at,
					    const struct zg_address *address)
{
	return bpf_skb_store_bytes(skb, at, (void *)address, family == 4 ? 4 : 16, 0);
}

/* The packet's own header. What the sender left to the network card (CHECKSUM_PARTIAL) holds the
 * sum of the addresses only, which the kernel's helper knows. */
static __always_inline int zg_translate_outer(struct __sk_buff *skb, const struct zg_packet *p,
					      const struct zg_translation *t, __u64 difference)
{
	const __u32 checksum_at = zg_checksum_at(p->family, p->protocol, p->upper);

	if (zg_store_address(skb, p->family, t->outer_at, &t->to))
		return ZG_DROP_INTERNAL;
	if (p->family == 4 && bpf_l3_csum_replace(skb, p->start + 10, 0, difference, 0))
		return ZG_DROP_INTERNAL;
	if (!checksum_at || p->fragmentation == ZG_LATER_FRAGMENT)
		return ZG_DROP_NONE;
	/* UDP without a checksum stays without one. */
	if (bpf_l4_csum_replace(skb, checksum_at, 0, difference,
				BPF_F_PSEUDO_HDR |
					(p->protocol == ZG_UDP ? BPF_F_MARK_MANGLED_0 : 0)))
		return ZG_DROP_INTERNAL;
	return ZG_DROP_NONE;
}

/* The header that an ICMP error quotes, with its checksums as whoever sent it knows them, and the
 * error's own checksum, which covers all that. IPv4's header and its checksum change by the same
 * amount, so nothing comes of them. */
static __always_inline int zg_translate_quoted(struct __sk_buff *skb, const struct zg_packet *p,
					       const struct zg_translation *t, __u64 difference)
{
	const __u32 icmp_at = p->upper + 2;
	const __u32 checksum_at = zg_checksum_at(p->family, t->quoted_protocol, t->quoted_upper);
	__u16 before = 0, after = 0;

	if (zg_store_address(skb, p->family, t->quoted_at, &t->to))
		return ZG_DROP_INTERNAL;
	if (bpf_l3_csum_replace(skb, p->family == 4 ? p->upper + 8 + 10 : icmp_at, 0, difference, 0))
		return ZG_DROP_INTERNAL;
	if (!checksum_at || !zg_load(skb, p, checksum_at, &before, 2))
		return ZG_DROP_NONE;
	if (!before && t->quoted_protocol == ZG_UDP)
		return ZG_DROP_NONE;
	if (bpf_l3_csum_replace(skb, checksum_at, 0, difference, 0) ||
	    !zg_load(skb, p, checksum_at, &after, 2) ||
	    bpf_l3_csum_replace(skb, icmp_at, before, after, 2))
		return ZG_DROP_INTERNAL;
	return ZG_DROP_NONE;
}

static __always_inline int zg_translate(struct __sk_buff *skb, const struct zg_packet *p,
					const struct zg_translation *t)
{
	const __u64 difference = bpf_csum_diff((void *)&t->from, sizeof(t->from), (void *)&t->to,
					       sizeof(t->to), 0);
	int reason = ZG_DROP_NONE;

	if (t->outer)
		reason = zg_translate_outer(skb, p, t, difference);
	if (!reason && t->quoted)
		reason = zg_translate_quoted(skb, p, t, difference);
	return reason;
}

#endif
