/* SPDX-License-Identifier: Apache-2.0 */
#include "offload_parse.h"

#include "bytes.h"
#include "offload_checksum.h"
#include "offload_headers.h"

/* Where the upper layer begins; 0 when there is no telling, or no plain TCP or UDP. */
static uint16_t parse_ip(struct zdp_parsed *parsed)
{
	const uint8_t *packet = parsed->packet;

	if (parsed->bytes >= IPV4_BYTES && packet[0] >> 4 == 4) {
		parsed->ip_version = 4;
		parsed->protocol = packet[IPV4_PROTOCOL];
		if (packet[0] != 0x45 || zdp_load16(packet + IPV4_LENGTH) != parsed->bytes ||
		    zdp_load16(packet + IPV4_FRAGMENT) & IPV4_IS_FRAGMENT)
			return 0;
		return IPV4_BYTES;
	}
	if (parsed->bytes >= IPV6_BYTES && packet[0] >> 4 == 6) {
		parsed->ip_version = 6;
		parsed->protocol = packet[IPV6_NEXT_HEADER];
		if (zdp_load16(packet + IPV6_LENGTH) + (size_t)IPV6_BYTES != parsed->bytes)
			return 0;
		return IPV6_BYTES;
	}
	return 0;
}

static void parse_tcp(struct zdp_parsed *parsed, const uint8_t *tcp, size_t tcp_bytes)
{
	size_t header_bytes;

	if (tcp_bytes < TCP_BYTES)
		return;
	parsed->has_flow = true;
	header_bytes = (size_t)(tcp[TCP_OFFSET] >> 4) * 4;
	if (header_bytes < TCP_BYTES || header_bytes > tcp_bytes)
		return;
	parsed->header_bytes += (uint16_t)header_bytes;
	parsed->payload_bytes = (uint32_t)(tcp_bytes - header_bytes);
	/* Nothing but ACK and PSH, the bit beside the data offset (RFC 9768's AE) included. */
	parsed->may_merge = parsed->payload_bytes && !(tcp[TCP_OFFSET] & 0xf) &&
			    (tcp[TCP_FLAGS] & ~TCP_PSH) == TCP_ACK;
}

static void parse_udp(struct zdp_parsed *parsed, const uint8_t *udp, size_t udp_bytes)
{
	if (udp_bytes < UDP_BYTES)
		return;
	parsed->has_flow = true;
	parsed->header_bytes += UDP_BYTES;
	parsed->payload_bytes = (uint32_t)(udp_bytes - UDP_BYTES);
	parsed->may_merge = parsed->payload_bytes && zdp_load16(udp + UDP_LENGTH) == udp_bytes &&
			    zdp_load16(udp + UDP_CHECKSUM);
}

void zdp_parse_for_merge(struct zdp_parsed *parsed, const uint8_t *packet, size_t bytes)
{
	memset(parsed, 0, sizeof(*parsed));
	parsed->packet = packet;
	parsed->bytes = bytes;
	parsed->ip_bytes = parsed->header_bytes = parse_ip(parsed);
	if (!parsed->ip_bytes)
		return;
	if (parsed->protocol == PROTOCOL_TCP)
		parse_tcp(parsed, packet + parsed->ip_bytes, bytes - parsed->ip_bytes);
	else if (parsed->protocol == PROTOCOL_UDP)
		parse_udp(parsed, packet + parsed->ip_bytes, bytes - parsed->ip_bytes);
}

bool zdp_same_addresses(const uint8_t *one, const uint8_t *other)
{
	if (one[0] >> 4 != other[0] >> 4)
		return false;
	if (one[0] >> 4 == 4)
		return !memcmp(one + IPV4_ADDRESSES, other + IPV4_ADDRESSES, IPV4_ADDRESSES_BYTES);
	return !memcmp(one + IPV6_ADDRESSES, other + IPV6_ADDRESSES, IPV6_ADDRESSES_BYTES);
}

bool zdp_checksums_right(const struct zdp_parsed *parsed)
{
	size_t upper_bytes = parsed->bytes - parsed->ip_bytes;
	size_t addresses_bytes = parsed->ip_version == 4 ? IPV4_ADDRESSES_BYTES : IPV6_ADDRESSES_BYTES;

	if (parsed->ip_version == 4 && zdp_fold(zdp_sum_ipv4_header(parsed->packet)) != 0xffff)
		return false;
	/* The addresses end where the upper layer begins. */
	return zdp_fold(zdp_sum(parsed->packet + parsed->ip_bytes - addresses_bytes,
				addresses_bytes + upper_bytes) +
			zdp_pseudo_sum(parsed->protocol, upper_bytes)) == 0xffff;
}

static bool same_ip_headers(const uint8_t *one, const uint8_t *other, uint8_t ip_version)
{
	/* IPv4: type of service; DF and the reserved bit; TTL. IPv6: traffic class and flow label; hop
	 * limit. */
	if (ip_version == 4)
		return one[IPV4_TOS] == other[IPV4_TOS] &&
		       one[IPV4_FRAGMENT] == other[IPV4_FRAGMENT] &&
		       one[IPV4_TTL] == other[IPV4_TTL];
	return zdp_load32(one) == zdp_load32(other) && one[IPV6_HOP_LIMIT] == other[IPV6_HOP_LIMIT];
}

static bool same_tcp_headers(const uint8_t *one, const uint8_t *other, size_t header_bytes)
{
	/* The window behind the flags, the urgent pointer behind the checksum, options. The data offset
	 * is the same when header_bytes is, and the flags are checked for each by itself. */
	return zdp_load32(one + TCP_ACKNOWLEDGEMENT) == zdp_load32(other + TCP_ACKNOWLEDGEMENT) &&
	       zdp_load16(one + TCP_FLAGS + 1) == zdp_load16(other + TCP_FLAGS + 1) &&
	       !memcmp(one + TCP_CHECKSUM + 2, other + TCP_CHECKSUM + 2,
		       header_bytes - TCP_CHECKSUM - 2);
}

bool zdp_same_headers(const struct zdp_parsed *one, const struct zdp_parsed *other)
{
	size_t ip_bytes = one->ip_bytes;

	if (one->header_bytes != other->header_bytes ||
	    !same_ip_headers(one->packet, other->packet, one->ip_version))
		return false;
	return one->protocol == PROTOCOL_UDP ||
	       same_tcp_headers(one->packet + ip_bytes, other->packet + ip_bytes,
				(size_t)(one->header_bytes - ip_bytes));
}
