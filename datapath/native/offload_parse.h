/* SPDX-License-Identifier: Apache-2.0 */
/* What the coalescer needs to know of a packet. */
#ifndef ZDP_OFFLOAD_PARSE_H
#define ZDP_OFFLOAD_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct zdp_parsed {
	const uint8_t *packet;
	size_t bytes;
	uint8_t ip_version; /* 0: not IP, or cut off */
	/* Whether it is TCP or UDP, whole, unfragmented, the ports where everybody expects them. All
	 * that follows is set only then. */
	bool has_flow;
	/* Whether others may be appended to it, or it to others, as far as it alone can tell. */
	bool may_merge;
	uint8_t protocol;
	uint16_t ip_bytes, header_bytes; /* header: of both layers */
	uint32_t payload_bytes;
};

void zdp_parse_for_merge(struct zdp_parsed *parsed, const uint8_t *packet, size_t bytes);

/* The two packets' addresses are the same, in the same direction. Both have an IP version. */
bool zdp_same_addresses(const uint8_t *one, const uint8_t *other);
/* Of packets with flows: addresses and ports; they stand together in both IP versions. */
static inline const uint8_t *zdp_flow_key(const struct zdp_parsed *parsed, size_t *bytes)
{
	*bytes = parsed->ip_version == 4 ? 12 : 36;
	return parsed->packet + parsed->ip_bytes + 4 - *bytes;
}

/* Whether both header checksums (there is only one in IPv6) of a packet with a flow are right. A
 * UDP packet without a checksum is not. */
bool zdp_checksums_right(const struct zdp_parsed *parsed);

/* Whether a merged packet, cut again, gives the same headers for both: all fields equal but
 * lengths, checksums, PSH, sequence number and IPv4 ID. */
bool zdp_same_headers(const struct zdp_parsed *one, const struct zdp_parsed *other);

#endif
