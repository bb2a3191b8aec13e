/* SPDX-License-Identifier: Apache-2.0 */
/* Rates, by the generic cell rate algorithm: one word says when the next packet is due, so a
 * bucket is one load and one store. Two CPUs that meet in one bucket may both pass: a limit is
 * exceeded by a packet or two, and nobody waits for a lock. */
#ifndef ZGATE_EDGE_LIMIT_H
#define ZGATE_EDGE_LIMIT_H

/* A super-packet (generic mode runs behind GRO) costs as the Initials that it may hold. */
#define ZG_EDGE_INITIAL_BYTES 1200

static __always_inline bool zg_edge_take(__u64 *due_ns, __u64 now_ns, __u64 interval_ns,
					 __u64 tolerance_ns, __u32 packets)
{
	__u64 due = *(volatile __u64 *)due_ns;

	if (due > now_ns + tolerance_ns)
		return false;
	if (due < now_ns)
		due = now_ns;
	*(volatile __u64 *)due_ns = due + interval_ns * packets;
	return true;
}

static __always_inline bool zg_edge_take_total(__u32 which, __u64 interval_ns, __u64 tolerance_ns,
					       __u64 now_ns, __u32 packets)
{
	__u64 *due_ns = zg_lookup(zg_map(totals), &which);

	return !interval_ns || !due_ns ||
	       zg_edge_take(due_ns, now_ns, interval_ns, tolerance_ns, packets);
}

/* A table that has no room for a new source lets it pass: the total still holds. */
static __always_inline bool zg_edge_take_source(const struct zg_edge_settings *s,
						const struct zg_edge_packet *p, __u64 now_ns,
						__u32 packets)
{
	const struct zg_edge_source key = {
		.family = p->source.family,
		.prefix = { p->source.word[0], p->source.word[1] },
	};
	__u64 *due_ns;

	if (!s->source_interval_ns)
		return true;
	due_ns = zg_lookup(zg_map(sources), &key);
	if (due_ns) {
		return zg_edge_take(due_ns, now_ns, s->source_interval_ns, s->source_tolerance_ns,
				    packets);
	} else {
		const __u64 first_ns = now_ns + s->source_interval_ns * packets;

		bpf_map_update_elem(zg_map(sources), (void *)&key, (void *)&first_ns, BPF_ANY);
		return true;
	}
}

static __always_inline __u32 zg_edge_initials_in(const struct zg_edge_packet *p)
{
	const __u32 most = p->payload_bytes / ZG_EDGE_INITIAL_BYTES;

	return most ? most : 1;
}

/* The source first: one that sends too much must not use up what is there for all. */
static __always_inline int zg_edge_admit_initial(const struct zg_edge_settings *s,
						 const struct zg_edge_packet *p)
{
	const __u32 packets = zg_edge_initials_in(p);
	const __u64 now_ns = bpf_ktime_get_ns();

	if (!zg_edge_take_source(s, p, now_ns, packets))
		return ZG_EDGE_SOURCE_RATE;
	if (!zg_edge_take_total(ZG_EDGE_TOTAL_INITIALS, s->total_interval_ns,
				s->total_tolerance_ns, now_ns, packets))
		return ZG_EDGE_TOTAL_RATE;
	return ZG_EDGE_INITIAL;
}

static __always_inline int zg_edge_admit_version(const struct zg_edge_settings *s,
						 const struct zg_edge_packet *p)
{
	if (!zg_edge_take_total(ZG_EDGE_TOTAL_VERSIONS, s->version_interval_ns,
				s->version_tolerance_ns, bpf_ktime_get_ns(),
				zg_edge_initials_in(p)))
		return ZG_EDGE_UNKNOWN_VERSION;
	return ZG_EDGE_VERSION_TRICKLE;
}

#endif
