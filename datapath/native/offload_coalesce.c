/* SPDX-License-Identifier: Apache-2.0 */
/* Into the TUN: packets of one flow that follow each other become one write, by the rules of the
 * kernel's GRO, and only when every checksum was right: what is merged carries a partial checksum,
 * which nobody behind the TUN verifies (docs/adr/0012-checksums-before-merging.md).
 *
 * Groups are written in the order in which they began. A packet is appended to the last group of its
 * flow or begins a new one, so order within a flow is kept. */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "bytes.h"
#include "offload.h"
#include "offload_checksum.h"
#include "offload_headers.h"
#include "offload_parse.h"

/* Groups under way; when there is no room for one more, all are written. */
#define MAX_GROUPS 128
/* Packets in one write. 64 kB hold no more than 50 of 1300 bytes, UDP_MAX_SEGMENTS was 64 in older
 * kernels, and 64 packets share a write's cost well enough. */
#define MAX_MERGED 64
#define SLOTS 256 /* a power of two, twice the groups */
#define MAX_HEADER_BYTES (IPV6_BYTES + 60)
#define NO_GROUP 0xff

struct group {
	struct zdp_parsed first;
	uint32_t flow_hash;
	uint32_t total_bytes, next_sequence;
	uint16_t count, next_ip_id;
	bool open;     /* may grow */
	bool verified; /* the first packet's checksums */
	bool ends_with_push;
	struct iovec pieces[1 + MAX_MERGED]; /* headers, payloads; the first payload once there are two */
};

struct zdp_coalescer {
	zdp_write_fn write;
	void *context;
	bool tcp, udp;
	uint64_t hash_seed;
	size_t count;
	struct zdp_coalesce_stats stats;
	uint8_t slots[SLOTS]; /* by flow: the last group that can grow, or could */
	struct group groups[MAX_GROUPS];
};

struct zdp_coalescer *zdp_coalescer_new(zdp_write_fn write, void *context, bool tcp, bool udp)
{
	struct zdp_coalescer *coalescer = calloc(1, sizeof(*coalescer));

	if (!coalescer)
		return NULL;
	coalescer->write = write;
	coalescer->context = context;
	coalescer->tcp = tcp;
	coalescer->udp = udp;
	memset(coalescer->slots, NO_GROUP, sizeof(coalescer->slots));
	/* So that nobody can choose flows that collide. Without it, that costs time, nothing else. */
	if (getrandom(&coalescer->hash_seed, sizeof(coalescer->hash_seed), GRND_NONBLOCK) < 0)
		coalescer->hash_seed = (uint64_t)(uintptr_t)coalescer;
	return coalescer;
}

void zdp_coalescer_free(struct zdp_coalescer *coalescer)
{
	free(coalescer);
}

void zdp_coalesce_stats(const struct zdp_coalescer *coalescer, struct zdp_coalesce_stats *stats)
{
	*stats = coalescer->stats;
}

/* Flows. */

static uint32_t hash_flow(const struct zdp_coalescer *coalescer, const struct zdp_parsed *parsed)
{
	uint64_t hash = coalescer->hash_seed ^ parsed->protocol;
	size_t bytes;
	const uint8_t *key = zdp_flow_key(parsed, &bytes);

	/* 12 or 36 bytes: threes of 32 bits. */
	for (size_t i = 0; i < bytes; i += 12) {
		hash ^= zdp_load32(key + i) | (uint64_t)zdp_load32(key + i + 4) << 32;
		hash = (hash ^ hash >> 32) * 0x9e3779b97f4a7c15ULL;
		hash ^= zdp_load32(key + i + 8);
		hash = (hash ^ hash >> 29) * 0xbf58476d1ce4e5b9ULL;
	}
	return (uint32_t)(hash >> 32);
}

static bool same_flow(const struct zdp_parsed *one, const struct zdp_parsed *other)
{
	size_t bytes;
	const uint8_t *key = zdp_flow_key(one, &bytes);

	return one->ip_version == other->ip_version && one->protocol == other->protocol &&
	       !memcmp(key, zdp_flow_key(other, &bytes), bytes);
}

/* The flow's slot, which may be empty: there are more slots than groups. */
static uint8_t *find_slot(struct zdp_coalescer *coalescer, const struct zdp_parsed *parsed,
			  uint32_t flow_hash)
{
	for (uint32_t i = flow_hash;; i++) {
		uint8_t *slot = &coalescer->slots[i % SLOTS];
		const struct group *group;

		if (*slot == NO_GROUP)
			return slot;
		group = &coalescer->groups[*slot];
		if (group->flow_hash == flow_hash && same_flow(&group->first, parsed))
			return slot;
	}
}

/* A fragment, or something else that may belong to any flow of its addresses: none may pass it. */
static void close_groups_of_addresses(struct zdp_coalescer *coalescer, const struct zdp_parsed *parsed)
{
	for (size_t i = 0; i < coalescer->count; i++) {
		struct group *group = &coalescer->groups[i];

		if (group->open && zdp_same_addresses(group->first.packet, parsed->packet))
			group->open = false;
	}
}

/* Appending. */

static bool follows(const struct group *group, const struct zdp_parsed *parsed)
{
	const uint8_t *packet = parsed->packet;

	/* Of an atomic datagram the ID means nothing (RFC 6864 section 4.1); cutting will count it up. */
	if (parsed->ip_version == 4 && !(zdp_load16(packet + IPV4_FRAGMENT) & IPV4_DF) &&
	    zdp_load16(packet + IPV4_ID) != group->next_ip_id)
		return false;
	return parsed->protocol == PROTOCOL_UDP ||
	       zdp_load32(packet + parsed->ip_bytes + TCP_SEQUENCE) == group->next_sequence;
}

static bool has_push(const struct zdp_parsed *parsed)
{
	return parsed->protocol == PROTOCOL_TCP &&
	       parsed->packet[parsed->ip_bytes + TCP_FLAGS] & TCP_PSH;
}

static void take(struct group *group, const struct zdp_parsed *parsed)
{
	const uint8_t *payload = parsed->packet + parsed->header_bytes;

	group->count++;
	group->pieces[group->count].iov_base = (void *)(uintptr_t)payload;
	group->pieces[group->count].iov_len = parsed->payload_bytes;
	group->total_bytes += parsed->payload_bytes;
	group->next_sequence += parsed->payload_bytes;
	group->next_ip_id++;
	group->ends_with_push = has_push(parsed);
	if (parsed->payload_bytes < group->first.payload_bytes || group->ends_with_push)
		group->open = false;
}

/* False: it must begin a group of its own. Checksums last: they are what costs. */
static bool append(struct group *group, const struct zdp_parsed *parsed)
{
	if (parsed->payload_bytes > group->first.payload_bytes || group->count >= MAX_MERGED ||
	    group->total_bytes + parsed->payload_bytes > ZDP_MAX_SUPER_BYTES ||
	    !follows(group, parsed) || !zdp_same_headers(&group->first, parsed))
		return false;
	if (!group->verified && !zdp_checksums_right(&group->first))
		return false;
	group->verified = true;
	if (!zdp_checksums_right(parsed))
		return false;
	take(group, parsed);
	return true;
}

static void begin_group(struct zdp_coalescer *coalescer, const struct zdp_parsed *parsed,
			uint32_t flow_hash, bool open)
{
	struct group *group;

	if (coalescer->count == MAX_GROUPS)
		zdp_coalesce_flush(coalescer);
	group = &coalescer->groups[coalescer->count++];
	group->first = *parsed;
	group->flow_hash = flow_hash;
	group->count = 0;
	group->verified = false;
	group->open = open;
	if (!open) {
		group->count = 1;
		return;
	}
	group->total_bytes = parsed->header_bytes;
	group->next_sequence = 0;
	if (parsed->protocol == PROTOCOL_TCP)
		group->next_sequence = zdp_load32(parsed->packet + parsed->ip_bytes + TCP_SEQUENCE);
	group->next_ip_id = zdp_load16(parsed->packet + IPV4_ID);
	take(group, parsed);
}

void zdp_coalesce_add(struct zdp_coalescer *coalescer, const uint8_t *packet, size_t bytes)
{
	struct zdp_parsed parsed;
	uint32_t flow_hash;
	uint8_t *slot;
	bool may_merge;

	coalescer->stats.packets++;
	zdp_parse_for_merge(&parsed, packet, bytes);
	if (!parsed.has_flow) {
		if (parsed.ip_version)
			close_groups_of_addresses(coalescer, &parsed);
		begin_group(coalescer, &parsed, 0, false);
		return;
	}
	may_merge = parsed.may_merge &&
		    (parsed.protocol == PROTOCOL_TCP ? coalescer->tcp : coalescer->udp);
	flow_hash = hash_flow(coalescer, &parsed);
	slot = find_slot(coalescer, &parsed, flow_hash);
	if (*slot != NO_GROUP) {
		struct group *group = &coalescer->groups[*slot];

		if (group->open && may_merge && append(group, &parsed))
			return;
		group->open = false;
	}
	begin_group(coalescer, &parsed, flow_hash, may_merge);
	if (may_merge) /* the slot may be another one now: the table may have been emptied */
		*find_slot(coalescer, &parsed, flow_hash) = (uint8_t)(coalescer->count - 1);
}

/* Writing. */

static void fill_ipv4(const struct group *group, uint8_t *header)
{
	zdp_store16(header + IPV4_LENGTH, (uint16_t)group->total_bytes);
	zdp_store16(header + IPV4_CHECKSUM, 0);
	zdp_store_checksum(header + IPV4_CHECKSUM, (uint16_t)~zdp_fold(zdp_sum_ipv4_header(header)));
}

static void fill_upper(const struct group *group, uint8_t *upper, size_t upper_bytes,
		       size_t checksum_offset)
{
	size_t addresses_bytes =
		group->first.ip_version == 4 ? IPV4_ADDRESSES_BYTES : IPV6_ADDRESSES_BYTES;
	uint64_t sum = zdp_sum(upper - addresses_bytes, addresses_bytes) +
		       zdp_pseudo_sum(group->first.protocol, upper_bytes);

	if (group->first.protocol == PROTOCOL_UDP)
		zdp_store16(upper + UDP_LENGTH, (uint16_t)upper_bytes);
	else if (group->ends_with_push)
		upper[TCP_FLAGS] |= TCP_PSH;
	zdp_store_checksum(upper + checksum_offset, zdp_fold(sum));
}

/* vnet header and the packet's headers; their length. */
static size_t fill_headers(const struct group *group, uint8_t *out)
{
	const struct zdp_parsed *first = &group->first;
	bool tcp = first->protocol == PROTOCOL_TCP;
	uint8_t *header = out + ZDP_VNET_BYTES;
	struct zdp_vnet_header vnet = {
		.flags = VNET_NEEDS_CHECKSUM,
		.gso_type = tcp ? first->ip_version == 4 ? VNET_GSO_TCPV4 : VNET_GSO_TCPV6 :
				  VNET_GSO_UDP_L4,
		.header_bytes = first->header_bytes,
		.gso_bytes = (uint16_t)first->payload_bytes,
		.checksum_start = first->ip_bytes,
		.checksum_offset = tcp ? TCP_CHECKSUM : UDP_CHECKSUM,
	};

	memcpy(out, &vnet, ZDP_VNET_BYTES);
	memcpy(header, first->packet, first->header_bytes);
	if (first->ip_version == 4)
		fill_ipv4(group, header);
	else
		zdp_store16(header + IPV6_LENGTH, (uint16_t)(group->total_bytes - IPV6_BYTES));
	fill_upper(group, header + first->ip_bytes, group->total_bytes - first->ip_bytes,
		   vnet.checksum_offset);
	return ZDP_VNET_BYTES + first->header_bytes;
}

static void write_one(struct zdp_coalescer *coalescer, const uint8_t *packet, size_t bytes)
{
	static const uint8_t no_offload[ZDP_VNET_BYTES];
	const struct iovec iov[2] = {
		{ .iov_base = (void *)(uintptr_t)no_offload, .iov_len = ZDP_VNET_BYTES },
		{ .iov_base = (void *)(uintptr_t)packet, .iov_len = bytes },
	};

	if (coalescer->write(coalescer->context, iov, 2) >= 0) {
		coalescer->stats.writes++;
		return;
	}
	coalescer->stats.failed_writes++;
	coalescer->stats.failed_packets++;
}

/* The TUN is full, down or gone: single packets would go the same way. */
static bool is_no_fault_of_the_packet(int error)
{
	return error == ENOBUFS || error == EAGAIN || error == ENOMEM || error == EIO ||
	       error == EBADFD || error == EBADF;
}

static void write_merged(struct zdp_coalescer *coalescer, struct group *group)
{
	uint8_t headers[ZDP_VNET_BYTES + MAX_HEADER_BYTES];
	size_t header_bytes = group->first.header_bytes;

	group->pieces[0].iov_base = headers;
	group->pieces[0].iov_len = fill_headers(group, headers);
	if (coalescer->write(coalescer->context, group->pieces, 1 + group->count) >= 0) {
		coalescer->stats.writes++;
		coalescer->stats.merged_packets += group->count;
		return;
	}
	coalescer->stats.failed_writes++;
	if (is_no_fault_of_the_packet(errno)) {
		coalescer->stats.failed_packets += group->count;
		return;
	}
	/* Every payload still lies behind its own headers. */
	for (int i = 1; i <= group->count; i++)
		write_one(coalescer, (const uint8_t *)group->pieces[i].iov_base - header_bytes,
			  header_bytes + group->pieces[i].iov_len);
}

void zdp_coalesce_flush(struct zdp_coalescer *coalescer)
{
	if (!coalescer->count)
		return;
	for (size_t i = 0; i < coalescer->count; i++) {
		struct group *group = &coalescer->groups[i];

		if (group->count > 1)
			write_merged(coalescer, group);
		else
			write_one(coalescer, group->first.packet, group->first.bytes);
	}
	coalescer->count = 0;
	memset(coalescer->slots, NO_GROUP, sizeof(coalescer->slots));
}
