/* SPDX-License-Identifier: Apache-2.0 */
/* What a client may use of bandwidth and of new flows.
 *
 * Each limit is one number: the time at which everything charged so far is paid back at the
 * limit's rate (GCRA, ITU-T I.371). What would move it further ahead than the burst is dropped
 * and not charged. All CPUs share it without a lock: every charge is an atomic addition, so
 * none is ever lost, and over time the rate is exact. Two CPUs that look at the same moment may
 * both pass what there was room for only once: one packet too many for each CPU, paid back by
 * those that follow. */
#ifndef ZGATE_POLICY_LIMIT_H
#define ZGATE_POLICY_LIMIT_H

static __always_inline bool zg_charge(__u64 *due_ns, __u64 cost_ns, __u64 burst_ns, __u64 now_ns)
{
	const __u64 due = *(volatile __u64 *)due_ns;

	/* With nothing to pay back anything passes, even what is larger than a burst. */
	if (due > now_ns && due + cost_ns > now_ns + burst_ns) {
		/* A debt from a lower limit, which is no more. */
		if (due > now_ns + 2 * burst_ns)
			__sync_val_compare_and_swap(due_ns, due, now_ns + burst_ns);
		return false;
	}
	/* If another CPU was faster, it has moved the time from the past to now. */
	if (due >= now_ns || __sync_val_compare_and_swap(due_ns, due, now_ns + cost_ns) != due)
		__sync_fetch_and_add(due_ns, cost_ns);
	return true;
}

/* Charges a packet that may pass: a reason to drop it nevertheless, and then nothing was
 * charged, or ZG_DROP_NONE. */
static __always_inline int zg_limit(const struct zg_assignment *limits, __u32 client_index,
				    __u32 bytes, bool new_flow, const int direction, __u64 now_ns)
{
	const __u64 flow_cost_ns = new_flow ? limits->flow_cost_ns : 0;
	const __u64 cost_ns = (__u64)bytes * limits->byte_cost >> ZG_COST_SHIFT;
	struct zg_limiter *limiter;

	if (!flow_cost_ns && !limits->byte_cost)
		return ZG_DROP_NONE;
	limiter = zg_lookup(zg_map(limiters), &client_index);
	if (!limiter)
		return ZG_DROP_INTERNAL;
	if (flow_cost_ns &&
	    !zg_charge(&limiter->flows_due_ns, flow_cost_ns, ZG_FLOW_BURST_NS, now_ns))
		return ZG_DROP_NEW_FLOW_LIMITED;
	if (!limits->byte_cost ||
	    zg_charge(direction == ZG_UP ? &limiter->up_due_ns : &limiter->down_due_ns, cost_ns,
		      limits->burst_ns, now_ns))
		return ZG_DROP_NONE;
	if (flow_cost_ns)
		__sync_fetch_and_add(&limiter->flows_due_ns, -flow_cost_ns);
	return ZG_DROP_RATE_LIMITED;
}

static __always_inline bool zg_is_limited(__u32 reason)
{
	return reason == ZG_DROP_RATE_LIMITED || reason == ZG_DROP_NEW_FLOW_LIMITED;
}

#endif
