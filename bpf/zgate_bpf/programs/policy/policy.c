/* SPDX-License-Identifier: Apache-2.0 */
/* Decides every packet on the gateway's TUN: zg_ingress what clients send, zg_egress what is
 * sent to them. The way of a packet:
 *
 *   1. zg_parse         addresses, protocol, ports; or MALFORMED and its like
 *   2. zg_is_link_local never forwarded
 *   3. zg_find_client   who holds the address; nobody: what a connector answers or is sent
 *                       (zg_decide_answer, zg_decide_onward), or NO_CLIENT
 *   4. zg_read_active   the generation of tables, read once per packet
 *   5. zg_recall_...    a later fragment is judged as its first one was
 *   6. zg_find_related  the flow that an ICMP error is about, or (zg_find_own) the packet's own
 *   7. zg_judge         no flow, or judged by what no longer holds: the policy decides
 *   8. zg_limit         what passes is charged to the client's limits
 *   9. zg_settle        the flow table learns of it
 *  10. zg_translate     a service's address and its offer's, one for the other
 *  11. zg_conclude      counted, told, marked, passed or dropped
 *
 * Anything that goes wrong on the way is a drop with a reason. Nothing here needs userspace
 * to be alive.
 *
 * All loops are unrolled: older verifiers (6.1) refuse some of the shapes that the compiler
 * gives to loops, and an unrolled program takes them half as long. */
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#include "zgate/drop_reason.h"
#include "zgate/ipv6_extension.h"
#include "zgate/policy_tables.h"
#include "maps.h"
#include "parse.h"
#include "classify.h"
#include "flow.h"
#include "limit.h"
#include "account.h"
#include "service.h"
#include "subject.h"
#include "connector.h"

_Static_assert(sizeof(struct zg_packet) <= ZG_SCRATCH_BYTES, "scratch");

/* The index of the loopback device in every network namespace, and the device of a packet in
 * BPF_PROG_TEST_RUN. These programs are attached to a TUN and to nothing else, so no real
 * packet has it: it tells a test run, which puts an Ethernet header before the packet where a
 * TUN has none, and which alone may ask to leave no trace. */
#define ZG_LOOPBACK_IFINDEX 1

static __always_inline bool zg_is_test_run(const struct __sk_buff *skb)
{
	return skb->ifindex == ZG_LOOPBACK_IFINDEX;
}

static __always_inline bool zg_is_dry_run(const struct __sk_buff *skb)
{
	return zg_is_test_run(skb) && skb->mark == ZG_DRY_RUN_MARK;
}

/* The flow table learns what the policy said: the flow is gone, or stands under the new
 * verdict. */
static __always_inline int zg_settle(const struct zg_packet *p, const struct zg_client *client,
				     const struct zg_subject *subject, const struct zg_verdict *v,
				     const struct zg_answer *answer, const int direction,
				     __u64 now_ns)
{
	const struct zg_flow *known = subject->flow;
	struct zg_flow flow = {
		.seen_ns = now_ns,
		.verdict = (__u64)v->rule << 32 | v->revision,
		.until_ns = answer->until_ns,
		.epoch = client->epoch,
		.client_index = client->index,
		.service = known ? known->service : p->service,
		.state = known ? known->state : 0,
		.limited = answer->assignment && answer->assignment->byte_cost,
		.backend = known ? known->backend : 0,
	};

	if (v->reason) {
		if (known)
			bpf_map_delete_elem(zg_map(flows), (void *)&subject->key);
		return v->reason;
	}
	if (known && subject->related)
		flow.seen_ns = known->seen_ns;
	else
		flow.state = zg_next_state(flow.state, p, direction);
	return zg_put_flow(&subject->key, &flow) ? ZG_DROP_NONE : ZG_DROP_FLOW_TABLE_FULL;
}

/* The flow or the policy lets the packet through; do the client's limits? */
static __always_inline int zg_limit_packet(struct __sk_buff *skb, const struct zg_packet *p,
					   const struct zg_client *client,
					   const struct zg_assignment *limits, bool new_flow,
					   const int direction, __u64 now_ns)
{
	if (!limits)
		return ZG_DROP_INTERNAL;
	return zg_limit(limits, client->index, zg_wire_bytes(p, zg_segments(skb, p)), new_flow,
			direction, now_ns);
}

static __always_inline int zg_decide_known(struct __sk_buff *skb, const struct zg_packet *p,
					   const struct zg_client *client,
					   const struct zg_active *active,
					   const struct zg_subject *subject, const int direction,
					   __u64 now_ns)
{
	if (subject->flow->limited) {
		const int reason = zg_limit_packet(
			skb, p, client,
			zg_lookup_in(assignments, active->slot_plus_1 - 1, &client->index), false,
			direction, now_ns);

		if (reason)
			return reason;
	}
	if (!subject->related)
		zg_touch_flow(subject->flow, p, direction, now_ns);
	return ZG_DROP_NONE;
}

/* What the gateway says itself comes before the policy. */
static __always_inline int zg_judge_remote(const struct zg_question *q, struct zg_answer *answer)
{
	const struct zg_endpoint *remote = zg_find_endpoint(q->family, q->destination);

	const bool is_dns = remote && remote->kind == ZG_ENDPOINT_GATEWAY &&
			    zg_is_dns(q->protocol, q->service);
	const bool is_offer = remote && remote->kind == ZG_ENDPOINT_OFFER;

	if (!is_dns && !is_offer)
		return zg_judge(q, answer);
	answer->rule = ZG_NO_RULE;
	answer->until_ns = ~0ull;
	answer->assignment = zg_lookup_in(assignments, q->slot, &q->client_index);
	if (!answer->assignment || !answer->assignment->policy)
		return ZG_DROP_NO_POLICY;
	return is_offer ? ZG_DROP_NOT_A_DESTINATION : ZG_DROP_NONE;
}

static __always_inline int zg_decide_anew(struct __sk_buff *skb, const struct zg_packet *p,
					  const struct zg_client *client,
					  const struct zg_active *active,
					  const struct zg_subject *subject, struct zg_verdict *v,
					  const int direction, bool dry_run, __u64 now_ns)
{
	const struct zg_flow *flow = subject->flow;
	const struct zg_question question = {
		.destination = &subject->key.remote,
		.now_ns = now_ns,
		.slot = active->slot_plus_1 - 1,
		.client_index = client->index,
		.family = subject->key.family,
		.protocol = subject->key.protocol,
		.service = flow ? flow->service : p->service,
	};
	struct zg_answer answer;

	v->flags |= ZG_VERDICT_JUDGED;
	v->reason = zg_judge_remote(&question, &answer);
	v->rule = answer.rule;
	if (!v->reason && !dry_run) {
		/* What is known stays as it is: the next packet may pass. */
		v->reason = zg_limit_packet(skb, p, client, answer.assignment, !flow, direction,
					    now_ns);
		if (v->reason)
			return v->reason;
	}
	if (!flow && !v->reason)
		v->flags |= ZG_VERDICT_NEW_FLOW;
	if (!dry_run)
		v->reason = zg_settle(p, client, subject, v, &answer, direction, now_ns);
	return v->reason;
}

static __always_inline int zg_decide_subject(struct __sk_buff *skb, const struct zg_packet *p,
					     const struct zg_client *client,
					     const struct zg_active *active,
					     const struct zg_subject *subject,
					     struct zg_verdict *v, const int direction,
					     bool dry_run, __u64 now_ns)
{
	const struct zg_flow *flow = subject->flow;
	const __u64 verdict = flow ? flow->verdict : 0;

	if (!flow && direction == ZG_DOWN)
		return ZG_DROP_UNSOLICITED;
	if (flow)
		v->flags |= ZG_VERDICT_KNOWN_FLOW | (subject->related ? ZG_VERDICT_RELATED : 0);
	if (flow && (__u32)verdict == active->revision && now_ns < flow->until_ns) {
		v->rule = verdict >> 32;
		if (dry_run)
			return ZG_DROP_NONE;
		return zg_decide_known(skb, p, client, active, subject, direction, now_ns);
	}
	return zg_decide_anew(skb, p, client, active, subject, v, direction, dry_run, now_ns);
}

static __always_inline int zg_decide(struct __sk_buff *skb, struct zg_packet *p,
				     struct zg_verdict *v, struct zg_translation *t,
				     const int direction, bool dry_run, __u64 now_ns)
{
	const struct zg_client *client;
	struct zg_subject subject;
	struct zg_active active;
	const int malformed = zg_parse(skb, p, false);
	int reason;

	if (malformed)
		return malformed;
	if (zg_is_link_local(p->family, &p->source) || zg_is_link_local(p->family, &p->destination))
		return ZG_DROP_LINK_LOCAL;
	client = zg_find_client(p, direction);
	if (!client)
		return direction == ZG_UP ? zg_decide_answer(skb, p, v, t, dry_run, now_ns)
					  : zg_decide_onward(skb, p, v, t, dry_run, now_ns);
	v->client_index = client->index;
	if (!zg_read_active(&active))
		return ZG_DROP_NO_POLICY;
	v->revision = active.revision;
	if (p->fragmentation == ZG_LATER_FRAGMENT && !zg_recall_fragment(p, now_ns))
		return ZG_DROP_FRAGMENT_WITHOUT_FIRST;
	zg_find_related(skb, p, client, direction, now_ns, &subject, t);
	zg_find_own(p, client, direction, now_ns, &subject);
	reason = zg_decide_subject(skb, p, client, &active, &subject, v, direction, dry_run,
				   now_ns);
	if (!reason && p->fragmentation == ZG_FIRST_FRAGMENT && !dry_run)
		zg_remember_fragment(p, now_ns);
	if (!reason && direction == ZG_UP && dry_run && !zg_has_offer(&subject))
		v->flags |= ZG_VERDICT_NO_OFFER;
	return reason;
}

/* BPF_PROG_TEST_RUN hands the control block back; see enum zg_verdict_word. */
static __always_inline void zg_show(struct __sk_buff *skb, const struct zg_verdict *v)
{
	skb->cb[ZG_VERDICT_REASON] = v->reason | v->flags << 8;
	skb->cb[ZG_VERDICT_CLIENT] = v->client_index;
	skb->cb[ZG_VERDICT_RULE] = v->rule;
	skb->cb[ZG_VERDICT_REVISION] = v->revision;
}

/* Nobody takes the flow to a service or a network: the packet goes into the TUN as it is, for whoever reads it
 * there to tell the client. ICMP tells of no ICMP error and of no later fragment (RFC 1122 section
 * 3.2.2, RFC 4443 section 2.4). */
static __always_inline bool zg_is_told(const struct zg_packet *p, const struct zg_verdict *v,
				       bool dry_run)
{
	return v->reason == ZG_DROP_NO_BACKEND && !dry_run && p->icmp != ZG_ICMP_ERROR &&
	       p->fragmentation != ZG_LATER_FRAGMENT;
}

static __always_inline int zg_conclude(struct __sk_buff *skb, const int direction)
{
	const bool dry_run = zg_is_dry_run(skb);
	const __u64 now_ns = bpf_ktime_get_coarse_ns();
	struct zg_packet packet = { .start = zg_is_test_run(skb) ? ETH_HLEN : 0, .end = skb->len };
	struct zg_verdict verdict = {
		.client_index = ZG_NO_CLIENT,
		.rule = ZG_NO_RULE,
		.direction = direction,
	};
	struct zg_translation translation = {};

	verdict.reason = zg_decide(skb, &packet, &verdict, &translation, direction, dry_run, now_ns);
	if (!verdict.reason && !dry_run && (translation.outer || translation.quoted))
		verdict.reason = zg_translate(skb, &packet, &translation);
	zg_show(skb, &verdict);
	if (!dry_run) {
		zg_count_packet(skb, &packet, &verdict);
		if (verdict.reason || verdict.flags & ZG_VERDICT_NEW_FLOW)
			zg_tell(&packet, &verdict, now_ns);
	}
	if (verdict.reason)
		return direction == ZG_DOWN && zg_is_told(&packet, &verdict, dry_run) ? TC_ACT_OK
										      : TC_ACT_SHOT;
	/* Not in a dry run: its mark is what makes each of its repetitions one. Volatile: the
	 * compiler would write one byte only, which the verifier forbids. */
	if (direction == ZG_UP && !dry_run)
		*(volatile __u32 *)&skb->mark = (skb->mark & ~ZG_PASS_MASK) | ZG_PASS_MARK;
	return TC_ACT_OK;
}

int zg_ingress(struct __sk_buff *skb)
{
	return zg_conclude(skb, ZG_UP);
}

int zg_egress(struct __sk_buff *skb)
{
	return zg_conclude(skb, ZG_DOWN);
}
