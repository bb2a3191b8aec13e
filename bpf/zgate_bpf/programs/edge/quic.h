/* SPDX-License-Identifier: Apache-2.0 */
/* What can be told of a QUIC packet without its keys: RFC 8999 for every version, RFC 9000 17
 * for ours. The first packet of a datagram stands for those that are coalesced behind it. */
#ifndef ZGATE_EDGE_QUIC_H
#define ZGATE_EDGE_QUIC_H

#include "connection_id.h"

#define ZG_EDGE_LONG_HEADER 0x80
#define ZG_EDGE_FIXED 0x40
/* RFC 9000 10.3: no short header packet is smaller, a Stateless Reset neither. */
#define ZG_EDGE_MIN_SHORT_BYTES 21
/* Before the destination connection ID: first byte, version, length; behind it one more length. */
#define ZG_EDGE_LONG_FIXED_BYTES 6
#define ZG_EDGE_MAX_CONNECTION_ID_BYTES 20
/* RFC 9000 7.2: what a client invents for its first packet. */
#define ZG_EDGE_MIN_INITIAL_ID_BYTES 8

enum zg_edge_packet_type { ZG_EDGE_TYPE_OTHER, ZG_EDGE_TYPE_INITIAL, ZG_EDGE_TYPE_HANDSHAKE };

/* 0-RTT needs a session ticket, and we give none; Retry is a server's. */
static __always_inline int zg_edge_type(__u8 first, __u32 version)
{
	const __u8 bits = first >> 4 & 3;

	if (version == ZG_EDGE_VERSION_1)
		return bits == 0 ? ZG_EDGE_TYPE_INITIAL
				 : bits == 2 ? ZG_EDGE_TYPE_HANDSHAKE : ZG_EDGE_TYPE_OTHER;
	return bits == 1 ? ZG_EDGE_TYPE_INITIAL
			 : bits == 3 ? ZG_EDGE_TYPE_HANDSHAKE : ZG_EDGE_TYPE_OTHER;
}

static __always_inline int zg_edge_judge_short(struct xdp_md *ctx,
					       const struct zg_edge_settings *settings,
					       const struct zg_edge_packet *p)
{
	if (!zg_edge_is_known_connection(ctx, settings, p->payload + 1))
		return ZG_EDGE_UNKNOWN_CONNECTION;
	return ZG_EDGE_SHORT_HEADER;
}

/* RFC 9000 6.1: version 0 is Version Negotiation, which no client sends; any other that we do
 * not know is answered if the datagram could have begun a connection. Only the first bit and
 * the connection IDs mean anything in them (RFC 8999). */
static __always_inline int zg_edge_judge_foreign(const struct zg_edge_settings *settings,
						 const struct zg_edge_packet *p, __u32 version)
{
	if (!version)
		return ZG_EDGE_PACKET_TYPE;
	if (p->payload_bytes < ZG_EDGE_INITIAL_BYTES)
		return ZG_EDGE_UNKNOWN_VERSION;
	return zg_edge_admit_version(settings, p);
}

static __always_inline int zg_edge_judge_initial(const struct zg_edge_settings *settings,
						 const struct zg_edge_packet *p,
						 __u32 destination_id_bytes)
{
	if (p->payload_bytes < ZG_EDGE_INITIAL_BYTES)
		return ZG_EDGE_INITIAL_TOO_SMALL;
	if (destination_id_bytes < ZG_EDGE_MIN_INITIAL_ID_BYTES)
		return ZG_EDGE_CONNECTION_ID;
	return zg_edge_admit_initial(settings, p);
}

static __always_inline int zg_edge_judge_long(struct xdp_md *ctx,
					      const struct zg_edge_settings *settings,
					      const struct zg_edge_packet *p)
{
	__u8 head[ZG_EDGE_LONG_FIXED_BYTES];
	__u32 version, destination_id_bytes;
	__u8 source_id_bytes;
	int type;

	if (!zg_edge_load(ctx, p->payload, head, sizeof(head)))
		return ZG_EDGE_MALFORMED;
	version = (__u32)head[1] << 24 | head[2] << 16 | head[3] << 8 | head[4];
	destination_id_bytes = head[5];
	if (version != ZG_EDGE_VERSION_1 && version != ZG_EDGE_VERSION_2)
		return zg_edge_judge_foreign(settings, p, version);
	if (!(head[0] & ZG_EDGE_FIXED))
		return ZG_EDGE_FIXED_BIT;
	type = zg_edge_type(head[0], version);
	if (type == ZG_EDGE_TYPE_OTHER)
		return ZG_EDGE_PACKET_TYPE;
	if (destination_id_bytes > ZG_EDGE_MAX_CONNECTION_ID_BYTES)
		return ZG_EDGE_CONNECTION_ID;
	/* Behind it, the length of the source's. */
	if (ZG_EDGE_LONG_FIXED_BYTES + destination_id_bytes >= p->payload_bytes)
		return ZG_EDGE_TOO_SHORT;
	if (!zg_edge_load(ctx, p->payload + ZG_EDGE_LONG_FIXED_BYTES + destination_id_bytes,
			  &source_id_bytes, 1))
		return ZG_EDGE_MALFORMED;
	if (source_id_bytes > ZG_EDGE_MAX_CONNECTION_ID_BYTES)
		return ZG_EDGE_CONNECTION_ID;
	if (type == ZG_EDGE_TYPE_INITIAL)
		return zg_edge_judge_initial(settings, p, destination_id_bytes);
	/* From now on the client knows an ID of ours, and uses it. */
	if (destination_id_bytes != ZG_EDGE_CONNECTION_ID_BYTES)
		return ZG_EDGE_CONNECTION_ID;
	if (!zg_edge_is_known_connection(ctx, settings, p->payload + ZG_EDGE_LONG_FIXED_BYTES))
		return ZG_EDGE_UNKNOWN_CONNECTION;
	return ZG_EDGE_HANDSHAKE;
}

static __always_inline int zg_edge_judge(struct xdp_md *ctx,
					 const struct zg_edge_settings *settings,
					 const struct zg_edge_packet *p)
{
	__u8 first;

	if (p->payload_bytes < ZG_EDGE_MIN_SHORT_BYTES)
		return ZG_EDGE_TOO_SHORT;
	if (!zg_edge_load(ctx, p->payload, &first, 1))
		return ZG_EDGE_MALFORMED;
	if (first & ZG_EDGE_LONG_HEADER)
		return zg_edge_judge_long(ctx, settings, p);
	if (!(first & ZG_EDGE_FIXED))
		return ZG_EDGE_FIXED_BIT;
	return zg_edge_judge_short(ctx, settings, p);
}

#endif
