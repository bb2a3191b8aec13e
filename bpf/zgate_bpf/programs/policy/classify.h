/* SPDX-License-Identifier: Apache-2.0 */
/* What the policy of a client says of one (destination, protocol, service).
 *
 * Destination prefixes with equal services share a list. A list holds prefixes of the
 * (protocol, port) space, in which the compiler has resolved the order of the rules; the
 * lists of enclosing destination prefixes are its parents. The lowest rule of all of them is
 * the first that matches. The number of rules is nowhere in it: two longest-prefix lookups,
 * and one more for each level at which destination prefixes nest. */
#ifndef ZGATE_POLICY_CLASSIFY_H
#define ZGATE_POLICY_CLASSIFY_H

struct zg_question {
	const struct zg_address *destination;
	__u32 slot;
	__u32 client_index;
	__u8 family;
	__u8 protocol;
	__u16 service;
};

static __always_inline struct zg_destination *zg_find_destination(const struct zg_question *q,
								  __u32 policy)
{
	if (q->family == 4) {
		const struct zg_destination4_key key = {
			.prefix_bits = 64,
			.policy_be = bpf_htonl(policy),
			.address = q->destination->word[0],
		};
		return zg_lookup_in(destinations4, q->slot, &key);
	} else {
		const struct zg_destination6_key key = {
			.prefix_bits = 160,
			.policy_be = bpf_htonl(policy),
			.address = *q->destination,
		};
		return zg_lookup_in(destinations6, q->slot, &key);
	}
}

/* The first rule that applies to this destination, ZG_NO_RULE if none does. */
static __always_inline __u32 zg_find_rule(const struct zg_question *q,
					  const struct zg_destination *destination)
{
	struct zg_service_key key = {
		.prefix_bits = 56,
		.protocol = q->protocol,
		.port_be = { q->service >> 8, q->service & 0xFF },
	};
	__u32 list = destination->list;
	__u32 parent = destination->parent;
	__u32 first = ZG_NO_RULE;
	int depth;

#pragma unroll
	for (depth = 0; depth < ZG_MAX_LIST_DEPTH; depth++) {
		__u32 *rule;

		key.list_be = bpf_htonl(list);
		rule = zg_lookup_in(services, q->slot, &key);
		if (rule && *rule < first)
			first = *rule;
		if (parent == ZG_NO_LIST)
			break;
		list = parent;
		{
			const struct zg_list *next = zg_lookup_in(lists, q->slot, &list);

			parent = next ? next->parent : ZG_NO_LIST;
		}
	}
	return first;
}

/* The reason to drop, ZG_DROP_NONE to pass; *rule is the rule that said so. */
static __always_inline int zg_judge(const struct zg_question *q, __u32 *rule)
{
	const struct zg_assignment *assignment =
		zg_lookup_in(assignments, q->slot, &q->client_index);
	const struct zg_destination *destination;
	const struct zg_rule *found;

	*rule = ZG_NO_RULE;
	if (!assignment)
		return ZG_DROP_INTERNAL;
	if (!assignment->policy)
		return ZG_DROP_NO_POLICY;
	destination = zg_find_destination(q, assignment->policy);
	if (destination)
		*rule = zg_find_rule(q, destination);
	if (*rule == ZG_NO_RULE)
		return assignment->default_action == ZG_ALLOW ? ZG_DROP_NONE
							      : ZG_DROP_POLICY_DEFAULT;
	found = zg_lookup_in(rules, q->slot, rule);
	if (!found)
		return ZG_DROP_INTERNAL;
	return found->action == ZG_ALLOW ? ZG_DROP_NONE : ZG_DROP_POLICY_RULE;
}

#endif
