/* SPDX-License-Identifier: Apache-2.0 */
/* What the policy of a client says of one (destination, protocol, service).
 *
 * 1. The longest destination prefix that rules name, by binary search over the prefix lengths
 *    that the policy uses: a hash lookup each, three for up to seven lengths. Where a search
 *    must go on to longer prefixes, the compiler left a mark, which knows the answer so far.
 * 2. Its list: intervals of the (protocol, port) space, in which the compiler has resolved the
 *    order of the rules. Binary search again, along a tree in an array.
 * 3. The lists of enclosing prefixes are its parents; the lowest rule of all is the first that
 *    matches. They are left out where they cannot have a lower one.
 *
 * The number of rules is nowhere in it, only the logarithm of those that share a destination.
 * Each search reads where to go on from a table and computes nothing: so the verifier, which
 * knows nothing of a table's numbers, finds all ways through it to be one.
 *
 * A table that does not hold what it must is no verdict: the packet is dropped. */
#ifndef ZGATE_POLICY_CLASSIFY_H
#define ZGATE_POLICY_CLASSIFY_H

struct zg_question {
	const struct zg_address *destination;
	__u64 now_ns;
	__u32 slot;
	__u32 client_index;
	__u8 family;
	__u8 protocol;
	__u16 service;
};

struct zg_answer {
	__u32 rule;                      /* the one that said so, or ZG_NO_RULE */
	__u64 until_ns;                  /* it may be another one from then on */
	const struct zg_assignment *assignment;
};

/* The client's policy of this moment; *id is its number. */
static __always_inline const struct zg_policy *zg_find_policy(const struct zg_question *q,
							      __u32 *id)
{
	void *policies = zg_table(policies, q->slot);
	int i;

	if (!policies)
		return NULL;
#pragma unroll
	for (i = 0; i < ZG_MAX_PERIODS; i++) {
		const struct zg_policy *policy = zg_lookup(policies, id);

		if (!policy || q->now_ns < policy->until_ns)
			return policy;
		*id = policy->next;
	}
	return NULL;
}

/* The list of the longest prefix around the destination, ZG_NO_LIST if there is none. */
static __always_inline int zg_find_list(const struct zg_question *q,
					const struct zg_policy *policy, __u32 id, __u32 *list)
{
	struct zg_destination_key key = { .policy = id, .family = q->family };
	__u32 at = q->family == 4 ? policy->first4 : policy->first6;
	void *destinations = zg_table(destinations, q->slot);
	int i;

	*list = ZG_NO_LIST;
	if (!destinations)
		return ZG_DROP_INTERNAL;
#pragma unroll
	for (i = 0; i < ZG_MAX_STEP_DEPTH; i++) {
		const struct zg_destination *found;
		const struct zg_address *mask;
		const struct zg_step *step;
		__u32 bits;

		if (at >= ZG_STEPS)
			break;
		step = &policy->steps[at];
		bits = step->bits;
		mask = zg_lookup(zg_map(masks), &bits);
		if (!mask)
			return ZG_DROP_INTERNAL;
		key.bits = bits;
		key.address.word[0] = q->destination->word[0] & mask->word[0];
		key.address.word[1] = q->destination->word[1] & mask->word[1];
		key.address.word[2] = q->destination->word[2] & mask->word[2];
		key.address.word[3] = q->destination->word[3] & mask->word[3];
		found = zg_lookup(destinations, &key);
		if (found) {
			*list = found->list;
			at = step->longer;
		} else {
			at = step->shorter;
		}
	}
	return ZG_DROP_NONE;
}

/* The first rule that applies, of the list and its parents; ZG_NO_RULE if none does. In each
 * list it is the rule of the last interval that begins at or before the service. */
static __always_inline int zg_find_rule(const struct zg_question *q, __u32 id, __u32 *first)
{
	const __u32 service = (__u32)q->protocol << 16 | q->service;
	void *intervals = zg_table(intervals, q->slot);
	void *lists = zg_table(lists, q->slot);
	const struct zg_list *list;
	__u32 at, rule = ZG_NO_RULE;
	int i;

	if (!intervals || !lists)
		return ZG_DROP_INTERNAL;
	list = zg_lookup(lists, &id);
	if (!list)
		return ZG_DROP_INTERNAL;
	at = list->root;
#pragma unroll
	for (i = 0; i < ZG_MAX_RULE_STEPS; i++) {
		const struct zg_interval *interval = zg_lookup(intervals, &at);

		if (!interval)
			return ZG_DROP_INTERNAL;
		if (interval->start <= service) {
			rule = interval->rule;
			at = interval->after;
		} else {
			at = interval->before;
		}
		if (at != ZG_NO_INTERVAL)
			continue;
		if (rule < *first)
			*first = rule;
		if (*first <= list->lowest_above)
			return ZG_DROP_NONE;
		id = list->parent;
		list = zg_lookup(lists, &id);
		if (!list)
			return ZG_DROP_INTERNAL;
		at = list->root;
		rule = ZG_NO_RULE;
	}
	return ZG_DROP_INTERNAL;
}

/* The reason to drop, ZG_DROP_NONE to pass. */
static __always_inline int zg_judge(const struct zg_question *q, struct zg_answer *answer)
{
	const struct zg_assignment *assignment =
		zg_lookup_in(assignments, q->slot, &q->client_index);
	const struct zg_policy *policy;
	const struct zg_rule *found;
	__u32 id, list;

	answer->rule = ZG_NO_RULE;
	answer->until_ns = 0;
	answer->assignment = assignment;
	if (!assignment)
		return ZG_DROP_INTERNAL;
	id = assignment->policy;
	if (!id)
		return ZG_DROP_NO_POLICY;
	policy = zg_find_policy(q, &id);
	if (!policy)
		return ZG_DROP_NO_POLICY;
	answer->until_ns = policy->until_ns;
	if (zg_find_list(q, policy, id, &list))
		return ZG_DROP_INTERNAL;
	if (list != ZG_NO_LIST && zg_find_rule(q, list, &answer->rule))
		return ZG_DROP_INTERNAL;
	if (answer->rule == ZG_NO_RULE)
		return policy->default_action == ZG_ALLOW ? ZG_DROP_NONE : ZG_DROP_POLICY_DEFAULT;
	found = zg_lookup_in(rules, q->slot, &answer->rule);
	if (!found)
		return ZG_DROP_INTERNAL;
	return found->action == ZG_ALLOW ? ZG_DROP_NONE : ZG_DROP_POLICY_RULE;
}

#endif
