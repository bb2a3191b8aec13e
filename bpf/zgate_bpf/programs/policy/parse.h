/* SPDX-License-Identifier: Apache-2.0 */
/* From bytes to addresses, protocol and ports: RFC 791, 8200, and what their children say of
 * fragments. Whatever does not parse is dropped; nothing is guessed.
 *
 * Bytes are copied with bpf_skb_load_bytes: it reads super-packets whose headers are not in
 * the linear part as well, and changes nothing in the packet. */
#ifndef ZGATE_POLICY_PARSE_H
#define ZGATE_POLICY_PARSE_H

#define ZG_MAX_EXTENSION_HEADERS 8

#define ZG_TCP_FIN 0x01
#define ZG_TCP_SYN 0x02
#define ZG_TCP_RST 0x04
#define ZG_TCP_ACK 0x10

enum zg_protocol {
	ZG_ICMP4 = 1,
	ZG_TCP = 6,
	ZG_UDP = 17,
	ZG_ICMP6 = 58,
	ZG_SCTP = 132,
	ZG_MOBILITY = 135,
	ZG_HIP = 139,
	ZG_SHIM6 = 140,
	ZG_EXPERIMENT_1 = 253,
	ZG_EXPERIMENT_2 = 254,
};

enum zg_fragmentation { ZG_WHOLE = 0, ZG_FIRST_FRAGMENT = 1, ZG_LATER_FRAGMENT = 2 };

enum zg_icmp {
	ZG_ICMP_NONE = 0,
	ZG_ICMP_ECHO_REQUEST = 1,
	ZG_ICMP_ECHO_REPLY = 2,
	ZG_ICMP_ERROR = 3,
	ZG_ICMP_OTHER = 4,
};

struct zg_packet {
	struct zg_address source;
	struct zg_address destination;
	__u32 start;                     /* where the IP header begins in the buffer */
	__u32 end;                       /* first byte behind the packet */
	__u32 upper;                     /* where the upper layer begins */
	__u32 header_bytes;              /* all headers: what each segment repeats */
	__u32 identification_be;         /* of the fragmented packet */
	__u16 source_port;               /* or as zg_set_icmp() says */
	__u16 destination_port;
	__u16 service;                   /* what a policy matches: port, or ICMP type and code */
	__u8 family;
	__u8 protocol;
	__u8 fragmentation;
	__u8 icmp;
	__u8 tcp_flags;
};

struct zg_ipv4_header {
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

struct zg_ipv6_header {
	__u32 version_and_flow_be;
	__u16 payload_length_be;
	__u8 next_header;
	__u8 hop_limit;
	struct zg_address source;
	struct zg_address destination;
};

static __always_inline bool zg_load(struct __sk_buff *skb, const struct zg_packet *p, __u32 offset,
				    void *to, const __u32 length)
{
	return offset + length <= p->end && bpf_skb_load_bytes(skb, offset, to, length) == 0;
}

/* An echo's identifier stands in for the client's port, so that replies find their flow. */
static __always_inline void zg_set_icmp(struct zg_packet *p, const __u8 *head)
{
	const bool v4 = p->family == 4;
	const __u8 type = head[0];
	const __u16 identifier = head[4] << 8 | head[5];

	p->service = type << 8 | head[1];
	if (p->service == (v4 ? 8 : 128) << 8) {
		p->icmp = ZG_ICMP_ECHO_REQUEST;
		p->source_port = identifier;
	} else if (p->service == (v4 ? 0 : 129) << 8) {
		p->icmp = ZG_ICMP_ECHO_REPLY;
		p->destination_port = identifier;
	} else {
		const bool error = v4 ? type == 3 || type == 11 || type == 12
				      : type >= 1 && type <= 4;

		p->icmp = error ? ZG_ICMP_ERROR : ZG_ICMP_OTHER;
	}
}

/* The rest of the TCP header: only a whole one is let through (RFC 1858, RFC 7112). */
static __always_inline int zg_parse_tcp(struct __sk_buff *skb, struct zg_packet *p)
{
	__u8 offset_and_flags[2];
	__u32 header_bytes;

	if (p->upper + 20 > p->end || !zg_load(skb, p, p->upper + 12, offset_and_flags, 2))
		return ZG_DROP_MALFORMED;
	header_bytes = (offset_and_flags[0] >> 4) * 4;
	if (header_bytes < 20 || p->upper + header_bytes > p->end)
		return ZG_DROP_MALFORMED;
	p->tcp_flags = offset_and_flags[1];
	p->header_bytes = p->upper - p->start + header_bytes;
	return ZG_DROP_NONE;
}

static __always_inline int zg_parse_upper(struct __sk_buff *skb, struct zg_packet *p,
					  const bool quoted)
{
	const bool icmp = p->protocol == (p->family == 4 ? ZG_ICMP4 : ZG_ICMP6);
	__u8 head[8];

	p->header_bytes = p->upper - p->start;
	if (!icmp && p->protocol != ZG_TCP && p->protocol != ZG_UDP && p->protocol != ZG_SCTP)
		return ZG_DROP_NONE;
	if (!zg_load(skb, p, p->upper, head, sizeof(head)))
		return ZG_DROP_MALFORMED;
	if (icmp) {
		zg_set_icmp(p, head);
		/* An error never grows so large that it has to be cut (RFC 1812, RFC 4443). */
		if (p->icmp == ZG_ICMP_ERROR && p->fragmentation != ZG_WHOLE)
			return ZG_DROP_MALFORMED;
		return ZG_DROP_NONE;
	}
	p->source_port = head[0] << 8 | head[1];
	p->destination_port = head[2] << 8 | head[3];
	p->service = p->destination_port;
	if (quoted)
		return ZG_DROP_NONE;
	if (p->protocol == ZG_TCP)
		return zg_parse_tcp(skb, p);
	if (p->protocol == ZG_UDP) {
		const __u32 length = head[4] << 8 | head[5];

		if (length < 8 || (p->fragmentation == ZG_WHOLE && length > p->end - p->upper))
			return ZG_DROP_MALFORMED;
		p->header_bytes += 8;
	}
	return ZG_DROP_NONE;
}

/* With a source route the destination in the header is not where the packet ends up, so a
 * verdict about it would be worth nothing (RFC 7126 section 4.3 and 4.4). */
static __always_inline int zg_check_ipv4_options(struct __sk_buff *skb, const struct zg_packet *p)
{
	__u32 offset = p->start + 20;
	int i;

#pragma unroll
	for (i = 0; i < 40; i++) {
		__u8 option[2] = {};

		if (offset >= p->upper)
			return ZG_DROP_NONE;
		if (!zg_load(skb, p, offset, option, 1))
			return ZG_DROP_MALFORMED;
		if (option[0] == 0)
			return ZG_DROP_NONE;
		if (option[0] == 1) {
			offset += 1;
			continue;
		}
		if (option[0] == 131 || option[0] == 137)
			return ZG_DROP_MALFORMED;
		if (offset + 2 > p->upper || !zg_load(skb, p, offset, option, 2))
			return ZG_DROP_MALFORMED;
		if (option[1] < 2 || offset + option[1] > p->upper)
			return ZG_DROP_MALFORMED;
		offset += option[1];
	}
	return ZG_DROP_NONE;
}

static __always_inline int zg_parse_ipv4(struct __sk_buff *skb, struct zg_packet *p,
					 const bool quoted)
{
	struct zg_ipv4_header header;
	__u32 header_bytes, total, fragment, offset;

	if (!zg_load(skb, p, p->start, &header, sizeof(header)))
		return ZG_DROP_MALFORMED;
	header_bytes = (header.version_and_words & 0x0F) * 4;
	total = bpf_ntohs(header.total_length_be);
	if (header.version_and_words >> 4 != 4 || header_bytes < 20 || total < header_bytes)
		return ZG_DROP_MALFORMED;
	if (p->start + total <= p->end)
		p->end = p->start + total;
	else if (!quoted)
		return ZG_DROP_MALFORMED;
	if (p->start + header_bytes > p->end)
		return ZG_DROP_MALFORMED;
	p->family = 4;
	p->source.word[0] = header.source;
	p->destination.word[0] = header.destination;
	p->protocol = header.protocol;
	p->upper = p->start + header_bytes;
	if (header_bytes > 20 && !quoted) {
		const int reason = zg_check_ipv4_options(skb, p);

		if (reason)
			return reason;
	}
	fragment = bpf_ntohs(header.fragment_be);
	offset = (fragment & 0x1FFF) * 8;
	if (offset + total > 0xFFFF)
		return ZG_DROP_MALFORMED;
	p->identification_be = header.identification_be;
	if (offset)
		p->fragmentation = ZG_LATER_FRAGMENT;
	else if (fragment & 0x2000)
		p->fragmentation = ZG_FIRST_FRAGMENT;
	return ZG_DROP_NONE;
}

static __always_inline bool zg_is_unknown(__u8 next)
{
	return zg_is_extension(next) || next == ZG_MOBILITY || next == ZG_HIP ||
	       next == ZG_SHIM6 || next == ZG_EXPERIMENT_1 || next == ZG_EXPERIMENT_2;
}

/* An offset of zero without more to come is a whole packet (RFC 6946). */
static __always_inline void zg_set_ipv6_fragment(struct zg_packet *p, const __u8 *head)
{
	const __u16 fragment = head[2] << 8 | head[3];

	__builtin_memcpy(&p->identification_be, head + 4, 4);
	if (fragment & 0xFFF8)
		p->fragmentation = ZG_LATER_FRAGMENT;
	else if (fragment & 1)
		p->fragmentation = ZG_FIRST_FRAGMENT;
}

/* Walks the extension headers (RFC 8200 section 4, RFC 9484 section 4.8). */
static __always_inline int zg_walk_extensions(struct __sk_buff *skb, struct zg_packet *p,
					      __u8 next)
{
	bool fragment_seen = false;
	int i;

#pragma unroll
	for (i = 0; i < ZG_MAX_EXTENSION_HEADERS; i++) {
		__u8 head[8];
		__u32 size;

		if (!zg_is_extension(next) || p->fragmentation == ZG_LATER_FRAGMENT)
			break;
		if (!zg_load(skb, p, p->upper, head, sizeof(head)))
			return ZG_DROP_MALFORMED;
		if (next == ZG_HOP_BY_HOP && i != 0)
			return ZG_DROP_MALFORMED;
		/* Segments left: the destination is not the last one. */
		if (next == ZG_ROUTING && head[3] != 0)
			return ZG_DROP_UNKNOWN_NEXT_HEADER;
		size = (head[1] + 1) * 8;
		if (next == ZG_AUTHENTICATION)
			size = (head[1] + 2) * 4;
		if (next == ZG_FRAGMENT) {
			if (fragment_seen)
				return ZG_DROP_MALFORMED;
			fragment_seen = true;
			size = 8;
			zg_set_ipv6_fragment(p, head);
		}
		p->upper += size;
		if (p->upper > p->end)
			return ZG_DROP_MALFORMED;
		next = head[0];
	}
	p->protocol = next;
	if (p->fragmentation != ZG_LATER_FRAGMENT && zg_is_unknown(next))
		return ZG_DROP_UNKNOWN_NEXT_HEADER;
	return ZG_DROP_NONE;
}

static __always_inline int zg_parse_ipv6(struct __sk_buff *skb, struct zg_packet *p,
					 const bool quoted)
{
	struct zg_ipv6_header header;
	__u32 end;

	if (!zg_load(skb, p, p->start, &header, sizeof(header)))
		return ZG_DROP_MALFORMED;
	if (bpf_ntohl(header.version_and_flow_be) >> 28 != 6)
		return ZG_DROP_MALFORMED;
	end = p->start + sizeof(header) + bpf_ntohs(header.payload_length_be);
	if (end <= p->end)
		p->end = end;
	else if (!quoted)
		return ZG_DROP_MALFORMED;
	p->family = 6;
	p->source = header.source;
	p->destination = header.destination;
	p->upper = p->start + sizeof(header);
	return zg_walk_extensions(skb, p, header.next_header);
}

/* Parses the packet between p->start and p->end. Everything else in *p must be zero. A quoted
 * one lies in an ICMP error, cut off somewhere. A later fragment comes back without its
 * ports: zg_recall_fragment() knows them. */
static __always_inline int zg_parse(struct __sk_buff *skb, struct zg_packet *p, const bool quoted)
{
	int reason;

	if (skb->protocol == bpf_htons(ETH_P_IP))
		reason = zg_parse_ipv4(skb, p, quoted);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		reason = zg_parse_ipv6(skb, p, quoted);
	else
		return ZG_DROP_NOT_IP;
	if (reason)
		return reason;
	if (p->fragmentation == ZG_LATER_FRAGMENT) {
		p->header_bytes = p->upper - p->start;
		return ZG_DROP_NONE;
	}
	return zg_parse_upper(skb, p, quoted);
}

static __always_inline bool zg_is_same(const struct zg_address *a, const struct zg_address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] &&
	       a->word[2] == b->word[2] && a->word[3] == b->word[3];
}

/* Never forwarded, RFC 9484 section 7.2; nor what is multicast on one link only. */
static __always_inline bool zg_is_link_local(__u8 family, const struct zg_address *address)
{
	const __u32 first = bpf_ntohl(address->word[0]);

	if (family == 4)
		return (first & 0xFFFF0000) == 0xA9FE0000 || (first & 0xFFFFFF00) == 0xE0000000;
	return (first & 0xFFC00000) == 0xFE800000 ||
	       ((first & 0xFF000000) == 0xFF000000 && (first >> 16 & 0xF) <= 2);
}

/* How many packets a super-packet is. A TUN leaves gso_segs at zero. */
static __always_inline __u32 zg_segments(struct __sk_buff *skb, const struct zg_packet *p)
{
	const __u32 length = p->end - p->start;

	if (skb->gso_segs)
		return skb->gso_segs;
	if (!skb->gso_size || length <= p->header_bytes)
		return 1;
	return (length - p->header_bytes + skb->gso_size - 1) / skb->gso_size;
}

/* What the segments of a super-packet are on the wire, each with headers of its own. */
static __always_inline __u32 zg_wire_bytes(const struct zg_packet *p, __u32 segments)
{
	return p->end - p->start + (segments - 1) * p->header_bytes;
}

#endif
