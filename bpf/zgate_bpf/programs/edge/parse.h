/* SPDX-License-Identifier: Apache-2.0 */
/* From a frame to the UDP payload that is for us. Bytes are copied with bpf_xdp_load_bytes: it
 * reads frames in several buffers (jumbo) as well. */
#ifndef ZGATE_EDGE_PARSE_H
#define ZGATE_EDGE_PARSE_H

#define ZG_EDGE_OURS (-1)                /* none of enum zg_edge_reason: go on */
#define ZG_EDGE_NEXT_HEADER (-2)         /* an extension header was walked */

#define ZG_EDGE_MAX_VLAN_TAGS 2
/* RFC 8200 4.1: each at most once, destination options twice; AH counts too. */
#define ZG_EDGE_MAX_EXTENSION_HEADERS 6

#define ZG_EDGE_UDP 17
#define ZG_EDGE_UDP_HEADER_BYTES 8

struct zg_edge_packet {
	struct zg_edge_address source;
	struct zg_edge_address destination;
	__u32 upper;                     /* where the layer above IP begins */
	__u32 upper_bytes;               /* by the IP header */
	__u32 payload;                   /* where the UDP payload begins */
	__u32 payload_bytes;             /* by the UDP header */
	__u8 protocol;
	bool is_fragment;                /* a first one, of several */
};

static __always_inline bool zg_edge_load(struct xdp_md *ctx, __u32 offset, void *to,
					 const __u32 length)
{
	return bpf_xdp_load_bytes(ctx, offset, to, length) == 0;
}

static __always_inline bool zg_edge_is_ours(const struct zg_edge_address *address)
{
	return zg_lookup(zg_map(addresses), address) != NULL;
}

static __always_inline bool zg_edge_is_vlan(__u16 ethertype)
{
	return ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD);
}

struct zg_edge_ipv4 {
	__u8 version_and_words;
	__u8 traffic_class;
	__u16 total_length_be;
	__u16 identification_be;
	__u16 fragment_be;
	__u8 ttl;
	__u8 protocol;
	__u16 checksum;
	__u32 source;
	__u32 destination;
};

/* Protocol first: most of a host's traffic is TCP, and costs one look. */
static __always_inline int zg_edge_ipv4(struct xdp_md *ctx, __u32 offset, struct zg_edge_packet *p)
{
	struct zg_edge_ipv4 header;
	__u32 header_bytes, total_bytes, fragment;

	if (!zg_edge_load(ctx, offset, &header, sizeof(header)))
		return ZG_EDGE_NOT_OURS;
	fragment = bpf_ntohs(header.fragment_be);
	if (header.protocol != ZG_EDGE_UDP || fragment & 0x1FFF)
		return ZG_EDGE_NOT_OURS;
	header_bytes = (header.version_and_words & 0xF) * 4;
	total_bytes = bpf_ntohs(header.total_length_be);
	if (header_bytes < sizeof(header) || total_bytes < header_bytes)
		return ZG_EDGE_NOT_OURS;
	p->source.family = p->destination.family = 4;
	p->source.word[0] = header.source;
	p->destination.word[0] = header.destination;
	p->upper = offset + header_bytes;
	p->upper_bytes = total_bytes - header_bytes;
	p->is_fragment = (fragment & 0x2000) != 0;
	return ZG_EDGE_OURS;
}

struct zg_edge_ipv6 {
	__u32 version_and_flow_be;
	__u16 payload_length_be;
	__u8 next_header;
	__u8 hop_limit;
	__u32 source[4];
	__u32 destination[4];
};

/* One step: the header at p->upper is of type p->protocol. */
static __always_inline int zg_edge_extension_header(struct xdp_md *ctx, struct zg_edge_packet *p)
{
	__u32 header_bytes;
	__u8 head[4];

	if (p->protocol == ZG_EDGE_UDP)
		return ZG_EDGE_OURS;
	if (!zg_is_extension(p->protocol))
		return ZG_EDGE_NOT_OURS;
	if (!zg_edge_load(ctx, p->upper, head, sizeof(head)))
		return ZG_EDGE_NOT_OURS;
	if (p->protocol == ZG_FRAGMENT) {
		header_bytes = 8;
		if (head[2] || head[3] & 0xF8)
			return ZG_EDGE_NOT_OURS; /* a later fragment */
		p->is_fragment = head[3] & 1; /* else an atomic one (RFC 6946): a whole packet */
	} else if (p->protocol == ZG_AUTHENTICATION) {
		header_bytes = (head[1] + 2) * 4;
	} else {
		header_bytes = (head[1] + 1) * 8;
	}
	if (header_bytes > p->upper_bytes)
		return ZG_EDGE_NOT_OURS;
	p->protocol = head[0];
	p->upper += header_bytes;
	p->upper_bytes -= header_bytes;
	return ZG_EDGE_NEXT_HEADER;
}

static __always_inline int zg_edge_ipv6(struct xdp_md *ctx, __u32 offset, struct zg_edge_packet *p)
{
	struct zg_edge_ipv6 header;
	int step;

	if (!zg_edge_load(ctx, offset, &header, sizeof(header)))
		return ZG_EDGE_NOT_OURS;
	p->source.family = p->destination.family = 6;
	__builtin_memcpy(p->source.word, header.source, 16);
	__builtin_memcpy(p->destination.word, header.destination, 16);
	p->upper = offset + sizeof(header);
	p->upper_bytes = bpf_ntohs(header.payload_length_be);
	p->protocol = header.next_header;
#pragma unroll
	for (int i = 0; i <= ZG_EDGE_MAX_EXTENSION_HEADERS; i++) {
		step = zg_edge_extension_header(ctx, p);
		if (step != ZG_EDGE_NEXT_HEADER)
			return step;
	}
	/* Nobody honest sends as many. Passing them would be the way round this program. */
	return zg_edge_is_ours(&p->destination) ? ZG_EDGE_MALFORMED : ZG_EDGE_NOT_OURS;
}

static __always_inline int zg_edge_find_ip(struct xdp_md *ctx, struct zg_edge_packet *p)
{
	__u32 offset = ETH_HLEN;
	__u16 ethertype;

	if (!zg_edge_load(ctx, offset - 2, &ethertype, 2))
		return ZG_EDGE_NOT_OURS;
#pragma unroll
	for (int i = 0; i < ZG_EDGE_MAX_VLAN_TAGS; i++) {
		if (zg_edge_is_vlan(ethertype)) {
			offset += 4;
			if (!zg_edge_load(ctx, offset - 2, &ethertype, 2))
				return ZG_EDGE_NOT_OURS;
		}
	}
	if (ethertype == bpf_htons(ETH_P_IP))
		return zg_edge_ipv4(ctx, offset, p);
	if (ethertype == bpf_htons(ETH_P_IPV6))
		return zg_edge_ipv6(ctx, offset, p);
	return ZG_EDGE_NOT_OURS;
}

/* ZG_EDGE_OURS, with the payload's place in the packet, or what becomes of it. */
static __always_inline int zg_edge_find_udp(struct xdp_md *ctx,
					    const struct zg_edge_settings *settings,
					    struct zg_edge_packet *p)
{
	const int found = zg_edge_find_ip(ctx, p);
	__u16 udp[4];
	__u32 udp_bytes;

	if (found != ZG_EDGE_OURS)
		return found;
	if (p->upper_bytes < sizeof(udp) || !zg_edge_load(ctx, p->upper, udp, sizeof(udp)))
		return ZG_EDGE_NOT_OURS;
	if (udp[1] != bpf_htons(settings->port) || !zg_edge_is_ours(&p->destination))
		return ZG_EDGE_NOT_OURS;
	udp_bytes = bpf_ntohs(udp[2]);
	p->payload = p->upper + ZG_EDGE_UDP_HEADER_BYTES;
	p->payload_bytes = udp_bytes - ZG_EDGE_UDP_HEADER_BYTES;
	if (p->is_fragment)
		return ZG_EDGE_OURS; /* its length is that of the whole packet */
	if (udp_bytes < ZG_EDGE_UDP_HEADER_BYTES || udp_bytes > p->upper_bytes)
		return ZG_EDGE_MALFORMED;
	return ZG_EDGE_OURS;
}

#endif
