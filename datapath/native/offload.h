/* SPDX-License-Identifier: Apache-2.0 */
/* Super-packets at the TUN (IFF_VNET_HDR): what the kernel leaves to a network card, done here.
 *
 * Out of the TUN: a TCP (TSO) or UDP (USO) super-packet is cut into segments with right lengths,
 * IDs, sequence numbers, flags and checksums; a partial checksum is completed.
 * Into the TUN: segments of one TCP flow that follow each other (and, where the kernel takes it,
 * UDP packets of one flow and size) become one write. What must not merge is written by itself. */
#ifndef ZDP_OFFLOAD_H
#define ZDP_OFFLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* struct virtio_net_hdr, in host byte order (the TUN's default): 10 bytes before every packet. */
struct zdp_vnet_header {
	uint8_t flags;
	uint8_t gso_type;
	uint16_t header_bytes;
	uint16_t gso_bytes;
	uint16_t checksum_start;
	uint16_t checksum_offset;
} __attribute__((packed));

#define ZDP_VNET_BYTES 10
/* What a coalesced write holds at most, without the vnet header. */
#define ZDP_MAX_SUPER_BYTES 65535
/* Room for any read of the TUN: IPv6's payload length does not count its own header. */
#define ZDP_MAX_READ_BYTES (ZDP_VNET_BYTES + 40 + 65535)

/* Segmentation. */

enum zdp_segment_error {
	ZDP_SEGMENT_OK = 0,
	ZDP_SEGMENT_BAD,     /* vnet header and packet do not fit each other, or not IP: drop */
	ZDP_SEGMENT_TOO_BIG, /* a segment would exceed max_segment_bytes: Packet Too Big */
};

/* A read of the TUN, being cut. The packet is not changed. */
struct zdp_segmenter {
	const uint8_t *packet; /* behind the vnet header */
	size_t packet_bytes;
	struct zdp_vnet_header vnet;
	/* The rest is filled in by zdp_segment_begin. */
	size_t header_bytes, segment_payload_bytes; /* the last segment's payload may be shorter */
	uint32_t index, count; /* segments: done, of */
	/* private to offload_segment.c */
	uint64_t ip_sum, upper_sum; /* what is the same in every segment */
	uint32_t tcp_sequence;
	uint16_t ip_id, upper_offset;
	uint8_t ip_version, kind;
};

/* `read` is what the TUN gave: vnet header, then the packet. A plain packet is one segment (its
 * checksum completed when the header asks). */
enum zdp_segment_error zdp_segment_begin(struct zdp_segmenter *segmenter, const uint8_t *read,
					 size_t read_bytes, size_t max_segment_bytes);
/* Bytes of the segment that comes next; 0: none is left. */
size_t zdp_segment_bytes(const struct zdp_segmenter *segmenter);
/* Writes the next segment to `out` (room: zdp_segment_bytes) and returns its length; 0 at the end. */
size_t zdp_segment_next(struct zdp_segmenter *segmenter, uint8_t *out);
/* Goes on at segment `index`, for a super-packet that was sent in parts. */
void zdp_segment_seek(struct zdp_segmenter *segmenter, uint32_t index);

/* Sets Congestion Experienced in an IP packet (RFC 3168; header checksum kept right); false when it
 * is not ECN-capable. Works on super-packets too. */
bool zdp_mark_ce(uint8_t *packet, size_t bytes);

/* Coalescing. */

/* Writes one packet; iov[0] begins with the vnet header (of a super-packet it holds the packet's
 * headers, too). The bytes written, or -1 with errno, as writev. */
typedef long (*zdp_write_fn)(void *context, const struct iovec *iov, int count);

struct zdp_coalescer; /* a few flows under way at a time */

struct zdp_coalesce_stats {
	uint64_t packets;        /* added */
	uint64_t writes;         /* that the TUN took */
	uint64_t merged_packets; /* that went as part of a super-packet */
	/* A super-packet that the kernel refuses counts as one failed write and is written again,
	 * packet by packet. Packets that did not go at all are failed packets. */
	uint64_t failed_writes, failed_packets;
};

/* `tcp`, `udp`: whether the TUN takes super-packets of that kind. NULL: no memory. */
struct zdp_coalescer *zdp_coalescer_new(zdp_write_fn write, void *context, bool tcp, bool udp);
void zdp_coalescer_free(struct zdp_coalescer *coalescer);
/* Adds an IP packet: its bytes stay where they are, unchanged, until zdp_coalesce_flush. Order within a
 * flow is kept, whatever merges; packets of different flows may change places. What cannot be
 * parsed is written as it is. May write (when too many flows are under way). */
void zdp_coalesce_add(struct zdp_coalescer *coalescer, const uint8_t *packet, size_t bytes);
/* Writes everything that was added. */
void zdp_coalesce_flush(struct zdp_coalescer *coalescer);
void zdp_coalesce_stats(const struct zdp_coalescer *coalescer, struct zdp_coalesce_stats *stats);

#endif
