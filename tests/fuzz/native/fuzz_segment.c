/* sources: offload_segment.c offload_checksum.c */
/* SPDX-License-Identifier: Apache-2.0 */
/* A read of the TUN, cut: nothing is touched outside, the segments' payloads are the packet's, lengths
 * and checksums are right as far as what came in was. */
#include "offload.h"

#include "bytes.h"
#include "fuzz.h"
#include "offload_headers.h"

/* The slow way, modulo 65535, so that both zeros of ones' complement are one. */
static uint32_t remainder_of(const uint8_t *at, size_t bytes)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < bytes; i++)
		sum += i & 1 ? at[i] : (uint32_t)at[i] << 8;
	return (uint32_t)(sum % 0xffff);
}

/* Otherwise almost no input gets past the first comparisons. */
static void repair(uint8_t *read, size_t bytes, uint8_t what)
{
	uint8_t *packet = read + ZDP_VNET_BYTES;
	struct zdp_vnet_header vnet;
	bool udp;

	if (bytes < ZDP_VNET_BYTES + 60 || !(what & 1))
		return;
	bytes -= ZDP_VNET_BYTES;
	memcpy(&vnet, read, ZDP_VNET_BYTES);
	if (packet[0] >> 4 == 6) {
		zdp_store16(packet + IPV6_LENGTH, (uint16_t)(bytes - IPV6_BYTES));
		udp = packet[IPV6_NEXT_HEADER] == PROTOCOL_UDP;
	} else {
		zdp_store16(packet + IPV4_LENGTH, (uint16_t)bytes);
		udp = packet[IPV4_PROTOCOL] == PROTOCOL_UDP;
		packet[IPV4_FRAGMENT] &= 0xc0;
		packet[IPV4_FRAGMENT + 1] = 0;
	}
	if (!(what & 2))
		return;
	vnet.flags |= VNET_NEEDS_CHECKSUM;
	vnet.checksum_start = packet[0] >> 4 == 6 ? IPV6_BYTES : (packet[0] & 0xf) * 4;
	vnet.checksum_offset = udp ? UDP_CHECKSUM : TCP_CHECKSUM;
	if (udp && vnet.checksum_start + (size_t)UDP_BYTES <= bytes)
		zdp_store16(packet + vnet.checksum_start + UDP_LENGTH,
			    (uint16_t)(bytes - vnet.checksum_start));
	memcpy(read, &vnet, ZDP_VNET_BYTES);
}

static void check_ip(const uint8_t *segment, size_t bytes)
{
	if (segment[0] >> 4 == 6) {
		check(zdp_load16(segment + IPV6_LENGTH) + (size_t)IPV6_BYTES == bytes);
		return;
	}
	check(zdp_load16(segment + IPV4_LENGTH) == bytes);
	check(remainder_of(segment, (size_t)(segment[0] & 0xf) * 4) == 0);
}

/* The segment's sum and the pseudo-header's must cancel out; the latter is what the packet brought,
 * with another length. */
static void check_upper(const struct zdp_segmenter *segmenter, const uint8_t *segment, size_t bytes)
{
	size_t at = segmenter->vnet.checksum_start;
	uint32_t pseudo = zdp_load16(segmenter->packet + at + segmenter->vnet.checksum_offset);
	uint32_t length = (uint32_t)(segmenter->packet_bytes - at), new_length = (uint32_t)(bytes - at);

	check((remainder_of(segment + at, bytes - at) + pseudo + 0xffff - length % 0xffff +
	       new_length) % 0xffff == 0);
}

static void cut(struct zdp_segmenter *segmenter, size_t max_segment_bytes)
{
	size_t payload_at = segmenter->header_bytes;
	bool plain = segmenter->vnet.gso_type == VNET_GSO_NONE;
	uint32_t index = 0;

	for (size_t bytes; (bytes = zdp_segment_bytes(segmenter)); index++) {
		uint8_t *segment = malloc(bytes), *again = malloc(bytes);

		check(segment && again && bytes <= max_segment_bytes);
		check(zdp_segment_next(segmenter, segment) == bytes);
		zdp_segment_seek(segmenter, index);
		check(zdp_segment_next(segmenter, again) == bytes && !memcmp(segment, again, bytes));
		if (!plain) {
			size_t payload_bytes = bytes - segmenter->header_bytes;

			check(!memcmp(segment + segmenter->header_bytes,
				      segmenter->packet + payload_at, payload_bytes));
			payload_at += payload_bytes;
			check_ip(segment, bytes);
			check_upper(segmenter, segment, bytes);
		}
		free(segment);
		free(again);
	}
	check(index == segmenter->count && index);
	check(zdp_segment_next(segmenter, NULL) == 0);
	check(plain || payload_at == segmenter->packet_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, data + size };
	uint8_t what = take_byte(&input);
	size_t max_segment_bytes = what & 4 ? take_number(&input, 2) : 65535;
	size_t bytes = left(&input);
	uint8_t *read = take_block(&input, &bytes);
	struct zdp_segmenter segmenter;

	repair(read, bytes, what);
	memset(&segmenter, 0xa5, sizeof(segmenter));
	switch (zdp_segment_begin(&segmenter, read, bytes, max_segment_bytes)) {
	case ZDP_SEGMENT_OK:
		cut(&segmenter, max_segment_bytes);
		break;
	case ZDP_SEGMENT_TOO_BIG:
		check(zdp_segment_bytes(&segmenter) > max_segment_bytes);
		break;
	case ZDP_SEGMENT_BAD:
		check(zdp_segment_bytes(&segmenter) == 0);
	}
	if (bytes > ZDP_VNET_BYTES)
		zdp_mark_ce(read + ZDP_VNET_BYTES, bytes - ZDP_VNET_BYTES);
	free(read);
	return 0;
}
