/* SPDX-License-Identifier: Apache-2.0 */
/* The connection IDs that the gateway gives name their owner, masked by a keyed function of
 * their random bytes: zgate_datapath.connection_ids, OwnerMask. An ID that names no owner was
 * never given. So most of what only looks like a packet of a connection is told from the real
 * ones without a table: of random bytes, owners in 256 pass. It keeps out noise, and not those
 * who have seen a real ID. */
#ifndef ZGATE_EDGE_CONNECTION_ID_H
#define ZGATE_EDGE_CONNECTION_ID_H

#define ZG_EDGE_CONNECTION_ID_BYTES 8

static __always_inline bool zg_edge_is_known_connection(struct xdp_md *ctx,
							const struct zg_edge_settings *settings,
							__u32 offset)
{
	__u64 id_be, rest;
	__u8 owner;

	if (!settings->owners)
		return true;
	if (!zg_edge_load(ctx, offset, &id_be, sizeof(id_be)))
		return false;
	rest = bpf_ntohll(id_be) & 0xFFFFFFFFFFFFFFull;
	owner = (bpf_ntohll(id_be) ^ (rest * settings->owner_factor + settings->owner_offset))
		>> 56;
	return owner < settings->owners;
}

#endif
