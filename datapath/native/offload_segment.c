/* SPDX-License-Identifier: Apache-2.0 */
/* Out of the TUN: super-packets are cut as the kernel does it in software (tcp_gso_segment,
 * __udp_gso_segment, inet_gso_segment). */
#include "bytes.h"
#include "offload.h"
#include "offload_checksum.h"
#include "offload_headers.h"

enum kind { PLAIN, PLAIN_CHECKSUM, SUPER_TCP, SUPER_UDP };

static size_t ipv4_header_bytes(const uint8_t *packet)
{
	return (size_t)(packet[0] & 0xf) * 4;
}

/* Whether there is room for the IP header; its length without IPv6's extension headers. */
static bool read_ip(struct zdp_segmenter *segmenter, size_t *ip_bytes)
{
	const uint8_t *packet = segmenter->packet;

	if (segmenter->packet_bytes < IPV4_BYTES)
		return false;
	segmenter->ip_version = packet[0] >> 4;
	if (segmenter->ip_version == 6)
		*ip_bytes = IPV6_BYTES;
	else if (segmenter->ip_version == 4)
		*ip_bytes = ipv4_header_bytes(packet);
	else
		return false;
	return *ip_bytes >= IPV4_BYTES && *ip_bytes <= segmenter->packet_bytes;
}

/* Whether IPv6's extension headers lead to `protocol` at checksum_start. Only those that every
 * segment may carry a copy of: a fragment, or what is under an Authentication Header, cannot be cut. */
static bool ipv6_leads_to(const struct zdp_segmenter *segmenter, uint8_t protocol)
{
	const uint8_t *packet = segmenter->packet;
	size_t at = IPV6_BYTES, upper = segmenter->vnet.checksum_start;
	uint8_t next = packet[IPV6_NEXT_HEADER];

	while (at < upper) {
		if (next != PROTOCOL_HOP_BY_HOP && next != PROTOCOL_ROUTING &&
		    next != PROTOCOL_DESTINATION)
			return false;
		/* In bounds: whoever asks knows that more than this comes behind `upper`. */
		next = packet[at];
		at += ((size_t)packet[at + 1] + 1) * 8;
	}
	return at == upper && next == protocol;
}

/* Whether the IP header agrees: whole, of this length, `protocol` at checksum_start. */
static bool ip_fits(const struct zdp_segmenter *segmenter, size_t ip_bytes, uint8_t protocol)
{
	const uint8_t *packet = segmenter->packet;

	if (segmenter->ip_version == 6)
		return zdp_load16(packet + IPV6_LENGTH) + (size_t)IPV6_BYTES == segmenter->packet_bytes &&
		       ipv6_leads_to(segmenter, protocol);
	return zdp_load16(packet + IPV4_LENGTH) == segmenter->packet_bytes &&
	       !(zdp_load16(packet + IPV4_FRAGMENT) & IPV4_IS_FRAGMENT) &&
	       packet[IPV4_PROTOCOL] == protocol && segmenter->vnet.checksum_start == ip_bytes;
}

/* Which protocol the vnet header announces; 0 when it is none that we have asked for (UFO, say), or
 * does not fit the IP version. */
static uint8_t super_protocol(const struct zdp_segmenter *segmenter)
{
	switch (segmenter->vnet.gso_type) {
	case VNET_GSO_TCPV4:
	case VNET_GSO_TCPV4 | VNET_GSO_ECN:
		return segmenter->ip_version == 4 ? PROTOCOL_TCP : 0;
	case VNET_GSO_TCPV6:
	case VNET_GSO_TCPV6 | VNET_GSO_ECN:
		return segmenter->ip_version == 6 ? PROTOCOL_TCP : 0;
	case VNET_GSO_UDP_L4:
		return PROTOCOL_UDP;
	default:
		return 0;
	}
}

/* The sum of the IPv4 header without what differs between segments. */
static uint64_t constant_ip_sum(const uint8_t *packet, size_t ip_bytes)
{
	return zdp_sum_word(packet) + zdp_sum_word(packet + IPV4_FRAGMENT) +
	       zdp_sum_word(packet + IPV4_TTL) +
	       zdp_sum(packet + IPV4_ADDRESSES, ip_bytes - IPV4_ADDRESSES);
}

/* The same of the TCP or UDP header and the pseudo-header. Whose sum the kernel has put into the
 * checksum's place: with a routing header it is of another destination than the IP header's. */
static uint64_t constant_upper_sum(const uint8_t *upper, size_t header_bytes, size_t upper_bytes,
				   bool tcp)
{
	uint16_t less = (uint16_t)~htons((uint16_t)upper_bytes);

	if (!tcp)
		return zdp_sum_two_words(upper) + zdp_sum_word(upper + UDP_CHECKSUM) + less;
	return zdp_sum_two_words(upper) + zdp_sum_two_words(upper + TCP_ACKNOWLEDGEMENT) +
	       zdp_sum(upper + TCP_FLAGS + 1, header_bytes - TCP_FLAGS - 1) + less;
}

static enum zdp_segment_error begin_super(struct zdp_segmenter *segmenter, size_t ip_bytes,
					  size_t max_segment_bytes)
{
	const struct zdp_vnet_header *vnet = &segmenter->vnet;
	const uint8_t *packet = segmenter->packet, *upper;
	uint8_t protocol = super_protocol(segmenter);
	bool tcp = protocol == PROTOCOL_TCP;
	size_t payload_bytes, upper_bytes, upper_header_bytes = tcp ? TCP_BYTES : UDP_BYTES;

	/* header_bytes is the length of the kernel's first fragment: a hint, and never looked at. */
	if (!protocol || !(vnet->flags & VNET_NEEDS_CHECKSUM) || !vnet->gso_bytes ||
	    vnet->checksum_offset != (tcp ? TCP_CHECKSUM : UDP_CHECKSUM) ||
	    vnet->checksum_start + upper_header_bytes > segmenter->packet_bytes ||
	    !ip_fits(segmenter, ip_bytes, protocol))
		return ZDP_SEGMENT_BAD;
	upper = packet + vnet->checksum_start;
	upper_bytes = segmenter->packet_bytes - vnet->checksum_start;
	if (tcp)
		upper_header_bytes = (size_t)(upper[TCP_OFFSET] >> 4) * 4;
	else if (zdp_load16(upper + UDP_LENGTH) != upper_bytes)
		return ZDP_SEGMENT_BAD;
	if ((tcp && upper_header_bytes < TCP_BYTES) || upper_header_bytes > upper_bytes)
		return ZDP_SEGMENT_BAD;

	payload_bytes = upper_bytes - upper_header_bytes;
	segmenter->kind = tcp ? SUPER_TCP : SUPER_UDP;
	segmenter->header_bytes = vnet->checksum_start + upper_header_bytes;
	segmenter->segment_payload_bytes = vnet->gso_bytes;
	segmenter->count = payload_bytes ? (uint32_t)((payload_bytes - 1) / vnet->gso_bytes + 1) : 1;
	segmenter->upper_offset = vnet->checksum_start;
	segmenter->upper_sum = constant_upper_sum(upper, upper_header_bytes, upper_bytes, tcp);
	if (tcp)
		segmenter->tcp_sequence = zdp_load32(upper + TCP_SEQUENCE);
	if (segmenter->ip_version == 4) {
		segmenter->ip_sum = constant_ip_sum(packet, ip_bytes);
		segmenter->ip_id = zdp_load16(packet + IPV4_ID);
	}
	if (zdp_segment_bytes(segmenter) > max_segment_bytes)
		return ZDP_SEGMENT_TOO_BIG;
	return ZDP_SEGMENT_OK;
}

static enum zdp_segment_error begin_plain(struct zdp_segmenter *segmenter, size_t ip_bytes,
					  size_t max_segment_bytes)
{
	const struct zdp_vnet_header *vnet = &segmenter->vnet;

	segmenter->kind = PLAIN;
	if (vnet->flags & VNET_NEEDS_CHECKSUM) {
		if (vnet->checksum_start < ip_bytes || vnet->checksum_offset & 1 ||
		    vnet->checksum_start + (size_t)vnet->checksum_offset + 2 > segmenter->packet_bytes)
			return ZDP_SEGMENT_BAD;
		segmenter->kind = PLAIN_CHECKSUM;
		segmenter->upper_offset = vnet->checksum_start;
	}
	segmenter->count = 1;
	segmenter->header_bytes = segmenter->packet_bytes;
	return segmenter->packet_bytes > max_segment_bytes ? ZDP_SEGMENT_TOO_BIG : ZDP_SEGMENT_OK;
}

enum zdp_segment_error zdp_segment_begin(struct zdp_segmenter *segmenter, const uint8_t *read,
					 size_t read_bytes, size_t max_segment_bytes)
{
	size_t ip_bytes;

	memset(segmenter, 0, sizeof(*segmenter));
	if (read_bytes < ZDP_VNET_BYTES)
		return ZDP_SEGMENT_BAD;
	memcpy(&segmenter->vnet, read, ZDP_VNET_BYTES);
	segmenter->packet = read + ZDP_VNET_BYTES;
	segmenter->packet_bytes = read_bytes - ZDP_VNET_BYTES;
	if (!read_ip(segmenter, &ip_bytes))
		return ZDP_SEGMENT_BAD;
	if (segmenter->vnet.gso_type == VNET_GSO_NONE)
		return begin_plain(segmenter, ip_bytes, max_segment_bytes);
	return begin_super(segmenter, ip_bytes, max_segment_bytes);
}

/* How much payload comes before the next segment's. */
static size_t payload_done(const struct zdp_segmenter *segmenter)
{
	return segmenter->index * segmenter->segment_payload_bytes;
}

size_t zdp_segment_bytes(const struct zdp_segmenter *segmenter)
{
	size_t payload_bytes;

	if (segmenter->index >= segmenter->count)
		return 0;
	payload_bytes = segmenter->packet_bytes - segmenter->header_bytes - payload_done(segmenter);
	if (segmenter->index + 1 < segmenter->count)
		payload_bytes = segmenter->segment_payload_bytes;
	return segmenter->header_bytes + payload_bytes;
}

static void write_plain(const struct zdp_segmenter *segmenter, uint8_t *out)
{
	size_t before = segmenter->upper_offset;
	uint16_t checksum;

	if (segmenter->kind == PLAIN) {
		memcpy(out, segmenter->packet, segmenter->packet_bytes);
		return;
	}
	memcpy(out, segmenter->packet, before);
	checksum = (uint16_t)~zdp_fold(zdp_copy_sum(out + before, segmenter->packet + before,
						    segmenter->packet_bytes - before));
	/* Zero would be "no checksum" in UDP; elsewhere both are zero in ones' complement. */
	zdp_store_checksum(out + before + segmenter->vnet.checksum_offset, checksum ? checksum : 0xffff);
}

static void write_ip(const struct zdp_segmenter *segmenter, uint8_t *out, size_t bytes)
{
	uint16_t ip_id = (uint16_t)(segmenter->ip_id + segmenter->index);

	if (segmenter->ip_version == 6) {
		zdp_store16(out + IPV6_LENGTH, (uint16_t)(bytes - IPV6_BYTES));
		return;
	}
	zdp_store16(out + IPV4_LENGTH, (uint16_t)bytes);
	zdp_store16(out + IPV4_ID, ip_id);
	/* Not read back from `out`: what was just stored in other pieces is slow to load. */
	zdp_store_checksum(out + IPV4_CHECKSUM, (uint16_t)~zdp_fold(segmenter->ip_sum +
								     htons((uint16_t)bytes) +
								     htons(ip_id)));
}

static void write_tcp(const struct zdp_segmenter *segmenter, uint8_t *upper, uint64_t payload_sum,
		      size_t upper_bytes)
{
	const uint8_t *original = segmenter->packet + segmenter->upper_offset;
	uint32_t sequence = segmenter->tcp_sequence + (uint32_t)payload_done(segmenter);
	uint16_t flags = zdp_load16(original + TCP_OFFSET); /* and the data offset */
	uint64_t sum = segmenter->upper_sum + payload_sum + htons((uint16_t)upper_bytes);

	if (segmenter->index > 0)
		flags &= (uint16_t)~TCP_CWR;
	if (segmenter->index + 1 < segmenter->count)
		flags &= (uint16_t)~(TCP_FIN | TCP_PSH);
	zdp_store32(upper + TCP_SEQUENCE, sequence);
	zdp_store16(upper + TCP_OFFSET, flags);
	sum += (uint64_t)htonl(sequence) + htons(flags);
	zdp_store_checksum(upper + TCP_CHECKSUM, (uint16_t)~zdp_fold(sum));
}

static void write_udp(const struct zdp_segmenter *segmenter, uint8_t *upper, uint64_t payload_sum,
		      size_t upper_bytes)
{
	/* The length counts twice: in the header and in the pseudo-header. */
	uint64_t sum = segmenter->upper_sum + payload_sum + 2 * (uint64_t)htons((uint16_t)upper_bytes);
	uint16_t checksum = (uint16_t)~zdp_fold(sum);

	zdp_store16(upper + UDP_LENGTH, (uint16_t)upper_bytes);
	zdp_store_checksum(upper + UDP_CHECKSUM, checksum ? checksum : 0xffff);
}

size_t zdp_segment_next(struct zdp_segmenter *segmenter, uint8_t *out)
{
	size_t bytes = zdp_segment_bytes(segmenter), header_bytes = segmenter->header_bytes;
	size_t upper_bytes;
	const uint8_t *payload;
	uint64_t payload_sum;

	if (!bytes)
		return 0;
	if (segmenter->kind == PLAIN || segmenter->kind == PLAIN_CHECKSUM) {
		write_plain(segmenter, out);
		segmenter->index++;
		return bytes;
	}
	upper_bytes = bytes - segmenter->upper_offset;
	payload = segmenter->packet + header_bytes + payload_done(segmenter);
	memcpy(out, segmenter->packet, header_bytes);
	payload_sum = zdp_copy_sum(out + header_bytes, payload, bytes - header_bytes);
	write_ip(segmenter, out, bytes);
	if (segmenter->kind == SUPER_TCP)
		write_tcp(segmenter, out + segmenter->upper_offset, payload_sum, upper_bytes);
	else
		write_udp(segmenter, out + segmenter->upper_offset, payload_sum, upper_bytes);
	segmenter->index++;
	return bytes;
}

void zdp_segment_seek(struct zdp_segmenter *segmenter, uint32_t index)
{
	segmenter->index = index;
}

static bool mark_ce_ipv4(uint8_t *packet)
{
	uint64_t sum = (uint16_t)~zdp_sum_word(packet + IPV4_CHECKSUM);

	if (!(packet[IPV4_TOS] & 3))
		return false;
	/* RFC 1624: the old word out, the new one in. A wrong checksum stays wrong. */
	sum += (uint16_t)~zdp_sum_word(packet);
	packet[IPV4_TOS] |= 3;
	sum += zdp_sum_word(packet);
	zdp_store_checksum(packet + IPV4_CHECKSUM, (uint16_t)~zdp_fold(sum));
	return true;
}

bool zdp_mark_ce(uint8_t *packet, size_t bytes)
{
	if (bytes >= IPV4_BYTES && packet[0] >> 4 == 4)
		return mark_ce_ipv4(packet);
	if (bytes < IPV6_BYTES || packet[0] >> 4 != 6 || !(packet[1] & 0x30))
		return false;
	packet[1] |= 0x30;
	return true;
}
