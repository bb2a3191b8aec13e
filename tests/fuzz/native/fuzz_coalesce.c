/* sources: offload_coalesce.c offload_parse.c offload_segment.c offload_checksum.c */
/* SPDX-License-Identifier: Apache-2.0 */
/* Packets, merged, and what is written cut again: the same packets, each flow's in their order, and what
 * went as part of a super-packet had right checksums before. */
#include "offload.h"

#include <errno.h>

#include "bytes.h"
#include "fuzz.h"
#include "offload_headers.h"
#include "offload_parse.h"

#define MAX_PACKETS 300
#define MAX_PAYLOAD 255

struct packet {
	uint8_t *bytes;
	size_t length;
	bool written;
	struct zdp_parsed parsed;
};

struct batch {
	struct packet packets[MAX_PACKETS];
	size_t count, written;
	uint8_t failing; /* how super-packets fail, if they do */
};

static uint32_t folded(const uint8_t *at, size_t bytes, uint32_t sum)
{
	for (size_t i = 0; i < bytes; i++)
		sum += i & 1 ? at[i] : (uint32_t)at[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static uint32_t pseudo_sum(const uint8_t *packet, size_t length, size_t ip_bytes)
{
	bool v4 = ip_bytes == IPV4_BYTES;
	const uint8_t *addresses = packet + (v4 ? IPV4_ADDRESSES : IPV6_ADDRESSES);

	return folded(addresses, ip_bytes - (size_t)(addresses - packet),
		      packet[v4 ? IPV4_PROTOCOL : IPV6_NEXT_HEADER] + (uint32_t)(length - ip_bytes));
}

static bool is_right(const uint8_t *packet, size_t length)
{
	size_t ip_bytes = packet[0] >> 4 == 4 ? IPV4_BYTES : IPV6_BYTES;

	if (ip_bytes == IPV4_BYTES && folded(packet, IPV4_BYTES, 0) != 0xffff)
		return false;
	return folded(packet + ip_bytes, length - ip_bytes, pseudo_sum(packet, length, ip_bytes)) ==
	       0xffff;
}

static void set_checksums(uint8_t *packet, size_t length, size_t ip_bytes, bool tcp)
{
	uint8_t *checksum = packet + ip_bytes + (tcp ? TCP_CHECKSUM : UDP_CHECKSUM);
	uint32_t sum;

	if (ip_bytes == IPV4_BYTES) {
		zdp_store16(packet + IPV4_CHECKSUM, 0);
		zdp_store16(packet + IPV4_CHECKSUM, (uint16_t)~folded(packet, IPV4_BYTES, 0));
	}
	zdp_store16(checksum, 0);
	sum = folded(packet + ip_bytes, length - ip_bytes, pseudo_sum(packet, length, ip_bytes));
	zdp_store16(checksum, sum == 0xffff && !tcp ? 0xffff : (uint16_t)~sum);
}

/* One packet of one of eight flows, which goes on where the flow's last one ended unless the input
 * says otherwise; some bytes changed before or after the checksums are made. */
static void make_packet(struct input *input, struct packet *packet, uint32_t *sequences)
{
	uint8_t what = take_byte(input), change = take_byte(input), flow = what & 7;
	bool v4 = what & 1, tcp = what & 2;
	size_t ip_bytes = v4 ? IPV4_BYTES : IPV6_BYTES, options = what & 8 ? 12 : 0;
	size_t header_bytes = ip_bytes + (tcp ? TCP_BYTES + options : UDP_BYTES);
	size_t payload_bytes = what & 0x80 ? 64 : take_byte(input);
	uint8_t *upper;

	packet->length = header_bytes + payload_bytes;
	packet->bytes = calloc(1, packet->length);
	check(packet->bytes);
	upper = packet->bytes + ip_bytes;
	packet->bytes[0] = v4 ? 0x45 : 0x60;
	packet->bytes[v4 ? IPV4_TTL : IPV6_HOP_LIMIT] = 64;
	packet->bytes[v4 ? IPV4_PROTOCOL : IPV6_NEXT_HEADER] = tcp ? PROTOCOL_TCP : PROTOCOL_UDP;
	if (v4) {
		zdp_store16(packet->bytes + IPV4_LENGTH, (uint16_t)packet->length);
		zdp_store16(packet->bytes + IPV4_FRAGMENT, what & 0x10 ? IPV4_DF : 0);
		zdp_store16(packet->bytes + IPV4_ID, (uint16_t)sequences[8 + flow]++);
	} else {
		zdp_store16(packet->bytes + IPV6_LENGTH, (uint16_t)(packet->length - IPV6_BYTES));
	}
	upper[1] = flow;
	if (tcp) {
		zdp_store32(upper + TCP_SEQUENCE, sequences[flow]);
		upper[TCP_OFFSET] = (uint8_t)(0x50 + (options << 2));
		upper[TCP_FLAGS] = TCP_ACK | (what & 0x20 ? TCP_PSH : 0);
		sequences[flow] += (uint32_t)payload_bytes;
	} else {
		zdp_store16(upper + UDP_LENGTH, (uint16_t)(packet->length - ip_bytes));
	}
	memset(packet->bytes + header_bytes, take_byte(input), payload_bytes);
	if (change & 1)
		packet->bytes[take_byte(input) % packet->length] ^= take_byte(input);
	set_checksums(packet->bytes, packet->length, ip_bytes, tcp);
	if (change & 2)
		packet->bytes[take_byte(input) % packet->length] ^= take_byte(input);
}

/* Equal but for what the offloads may change: the ID of an atomic datagram, which zero it is. */
static bool same_packet(const uint8_t *one, const uint8_t *other, size_t bytes, bool merged)
{
	size_t upper, checksum_at;

	if (!merged)
		return !memcmp(one, other, bytes);
	upper = one[0] >> 4 == 4 ? IPV4_BYTES : IPV6_BYTES;
	checksum_at = upper + (one[upper == IPV4_BYTES ? IPV4_PROTOCOL : IPV6_NEXT_HEADER] ==
				PROTOCOL_TCP ? TCP_CHECKSUM : UDP_CHECKSUM);
	for (size_t i = 0; i < bytes; i++) {
		bool ip_word = upper == IPV4_BYTES &&
			       ((i >= IPV4_CHECKSUM && i < IPV4_CHECKSUM + 2) ||
				(i >= IPV4_ID && i < IPV4_ID + 2 && one[IPV4_FRAGMENT] & 0x40));
		bool checksum = i >= checksum_at && i < checksum_at + 2;

		if (one[i] != other[i] && !ip_word && !checksum)
			return false;
	}
	/* The checksums are left out above: so they must be right. */
	return is_right(one, bytes) && is_right(other, bytes);
}

static bool same_flow(const struct zdp_parsed *one, const struct zdp_parsed *other)
{
	size_t bytes;
	const uint8_t *key;

	if (!one->has_flow || !other->has_flow)
		return one->ip_version && other->ip_version &&
		       (one->has_flow || other->has_flow) &&
		       zdp_same_addresses(one->packet, other->packet);
	key = zdp_flow_key(one, &bytes);
	return one->ip_version == other->ip_version && one->protocol == other->protocol &&
	       !memcmp(key, zdp_flow_key(other, &bytes), bytes);
}

/* The first packet of its flow that is still to come must be this one. */
static void came(struct batch *batch, const uint8_t *bytes, size_t length, bool merged)
{
	struct zdp_parsed parsed;

	zdp_parse_for_merge(&parsed, bytes, length);
	for (size_t i = 0; i < batch->count; i++) {
		struct packet *packet = &batch->packets[i];

		if (packet->written)
			continue;
		if (packet->length == length && same_packet(bytes, packet->bytes, length, merged)) {
			check(!merged || is_right(packet->bytes, packet->length));
			packet->written = true;
			batch->written++;
			return;
		}
		check(!same_flow(&parsed, &packet->parsed));
	}
	check(!"a packet came out that did not go in");
}

static void came_merged(struct batch *batch, const uint8_t *write, size_t bytes)
{
	struct zdp_segmenter segmenter;
	uint8_t segment[ZDP_VNET_BYTES + IPV6_BYTES + 60 + MAX_PAYLOAD];

	check(bytes <= ZDP_VNET_BYTES + ZDP_MAX_SUPER_BYTES);
	check(zdp_segment_begin(&segmenter, write, bytes, sizeof(segment)) == ZDP_SEGMENT_OK);
	check(segmenter.count > 1);
	for (size_t length; (length = zdp_segment_next(&segmenter, segment));)
		came(batch, segment, length, true);
}

static long take_write(void *context, const struct iovec *iov, int count)
{
	static const uint8_t no_offload[ZDP_VNET_BYTES];
	struct batch *batch = context;
	size_t bytes = 0, at = 0;
	uint8_t *write;

	check(iov[0].iov_len >= ZDP_VNET_BYTES);
	for (int i = 0; i < count; i++)
		bytes += iov[i].iov_len;
	write = malloc(bytes);
	check(write);
	for (int i = 0; i < count; at += iov[i++].iov_len)
		memcpy(write + at, iov[i].iov_base, iov[i].iov_len);
	if (!memcmp(write, no_offload, ZDP_VNET_BYTES)) {
		came(batch, write + ZDP_VNET_BYTES, bytes - ZDP_VNET_BYTES, false);
	} else if (batch->failing) {
		free(write);
		errno = EINVAL;
		return -1;
	} else {
		came_merged(batch, write, bytes);
	}
	free(write);
	return (long)bytes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, data + size };
	struct batch *batch = calloc(1, sizeof(*batch));
	uint8_t how = take_byte(&input);
	struct zdp_coalescer *coalescer = zdp_coalescer_new(take_write, batch, !(how & 1), !(how & 2));
	struct zdp_coalesce_stats stats;
	uint32_t sequences[16] = { 0 };

	check(batch && coalescer);
	batch->failing = how & 4;
	while (left(&input) && batch->count < MAX_PACKETS) {
		struct packet *packet = &batch->packets[batch->count++];

		if (how & 8 && take_byte(&input) == 0xff) {
			packet->length = take_byte(&input);
			packet->bytes = take_block(&input, &packet->length);
		} else {
			make_packet(&input, packet, sequences);
		}
		zdp_parse_for_merge(&packet->parsed, packet->bytes, packet->length);
		zdp_coalesce_add(coalescer, packet->bytes, packet->length);
	}
	zdp_coalesce_flush(coalescer);
	check(batch->written == batch->count);
	zdp_coalesce_stats(coalescer, &stats);
	check(stats.packets == batch->count && !stats.failed_packets && stats.writes <= batch->count);
	for (size_t i = 0; i < batch->count; i++)
		free(batch->packets[i].bytes);
	zdp_coalescer_free(coalescer);
	free(batch);
	return 0;
}
