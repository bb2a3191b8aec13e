/* SPDX-License-Identifier: Apache-2.0 */
/* The maps, by numbers that stand for them (ZG_MAP_<name>): zgate_bpf.linking puts their
 * descriptors there, so that one compilation serves every start.
 * zgate_bpf makes them, not bcc: tables of one generation are maps inside maps, sized by
 * configuration, and bcc's macros cannot say that. */
#ifndef ZGATE_POLICY_MAPS_H
#define ZGATE_POLICY_MAPS_H

#define zg_map(name) ((void *)bpf_pseudo_fd(1, ZG_MAP_##name))

static __always_inline void *zg_lookup(void *map, const void *key)
{
	return bpf_map_lookup_elem(map, (void *)key);
}

/* The table of one generation: outer[slot]. */
#define zg_table(name, slot)                                             \
	({                                                               \
		__u32 zg_slot_ = (slot);                                 \
		zg_lookup(zg_map(name), &zg_slot_);                      \
	})

#define zg_lookup_in(name, slot, key)                                    \
	({                                                               \
		void *zg_inner_ = zg_table(name, slot);                  \
		zg_inner_ ? zg_lookup(zg_inner_, (key)) : NULL;          \
	})

static __always_inline void zg_count(void *per_cpu_array, __u32 index, __u64 by)
{
	__u64 *counter = zg_lookup(per_cpu_array, &index);

	if (counter)
		*counter += by;
}

#endif
