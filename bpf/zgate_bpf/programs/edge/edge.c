/* SPDX-License-Identifier: Apache-2.0 */
/* Stands on the uplink before the gateway's UDP port, and drops what cannot be QUIC there, so
 * that it costs userspace nothing. The way of a packet:
 *
 *   1. zg_edge_find_udp   Ethernet, VLAN, IP: is it UDP to our port and one of our addresses?
 *                         Anything else passes, untouched and uncounted.
 *   2. zg_edge_is_blocked the blocklist
 *   3. zg_edge_judge      what can be told of QUIC without keys (RFC 8999, RFC 9000)
 *   4. zg_edge_admit      Initials and unknown versions: as many as userspace can afford
 *
 * It is a shield and no guard: what it passes is as untrusted as before. */
#include <linux/if_ether.h>

#include "zgate/edge_reason.h"
#include "zgate/edge_tables.h"
#include "zgate/ipv6_extension.h"
#include "../policy/maps.h"
#include "parse.h"
#include "limit.h"
#include "quic.h"

static __always_inline bool zg_edge_is_blocked(const struct zg_edge_packet *p)
{
	const struct zg_edge_prefix4 key4 = { .bits = 32, .word = p->source.word[0] };
	const struct zg_edge_prefix6 key6 = {
		.bits = 128,
		.word = { p->source.word[0], p->source.word[1], p->source.word[2],
			  p->source.word[3] },
	};

	if (p->source.family == 4)
		return zg_lookup_in(block4, 0, &key4) != NULL;
	return zg_lookup_in(block6, 0, &key6) != NULL;
}

static __always_inline int zg_edge_decide(struct xdp_md *ctx,
					  const struct zg_edge_settings *settings)
{
	struct zg_edge_packet packet = {};
	const int found = zg_edge_find_udp(ctx, settings, &packet);

	if (found != ZG_EDGE_OURS)
		return found;
	if (zg_edge_is_blocked(&packet))
		return ZG_EDGE_BLOCKLISTED;
	if (packet.is_fragment)
		return ZG_EDGE_FRAGMENT;
	return zg_edge_judge(ctx, settings, &packet);
}

int zg_edge(struct xdp_md *ctx)
{
	const __u32 zero = 0;
	const struct zg_edge_settings *settings = zg_lookup(zg_map(settings), &zero);
	int reason;

	if (!settings || !settings->port)
		return XDP_PASS;
	reason = zg_edge_decide(ctx, settings);
	if (reason == ZG_EDGE_NOT_OURS)
		return XDP_PASS;
	zg_count(zg_map(counters), reason, 1);
	return reason >= ZG_EDGE_FIRST_DROP ? XDP_DROP : XDP_PASS;
}
