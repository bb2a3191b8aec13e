/* SPDX-License-Identifier: Apache-2.0 */
/* What cutting and merging cost: `python -m tests.native.bench_offload` compiles and runs it.
 *
 * Every figure is the best of several rounds, in nanoseconds for a segment or packet; the kernel has
 * no part in it (writes go nowhere). "copy alone" is memcpy over the same memory: what no offload
 * could go below. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "bytes.h"
#include "offload.h"
#include "offload_checksum.h"

#define ROUNDS 15
#define REPEATS 300
#define SLOT 2048

static uint8_t read_buffer[ZDP_MAX_READ_BYTES], segments[64 * SLOT];
static size_t segment_bytes[64];
static uint64_t sink;

static double now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static long write_nowhere(void *context, const struct iovec *iov, int count)
{
	(void)context;
	sink += iov[count - 1].iov_len;
	return 1;
}

/* A super-packet of `count` segments with a right partial checksum; its length with vnet header. */
static size_t make_super(int ip_version, bool tcp, size_t payload_bytes, size_t count)
{
	size_t ip_bytes = ip_version == 4 ? 20 : 40, upper_header = tcp ? 32 : 8;
	size_t addresses = ip_version == 4 ? 8 : 32, upper_bytes = upper_header + payload_bytes * count;
	uint8_t *packet = read_buffer + ZDP_VNET_BYTES, *upper = packet + ip_bytes;
	struct zdp_vnet_header vnet = { 1, tcp ? (ip_version == 4 ? 1 : 4) : 5, (uint16_t)ip_bytes,
					(uint16_t)payload_bytes, (uint16_t)ip_bytes, tcp ? 16 : 6 };

	for (size_t i = 0; i < sizeof(read_buffer); i++)
		read_buffer[i] = (uint8_t)rand();
	memcpy(read_buffer, &vnet, ZDP_VNET_BYTES);
	packet[0] = ip_version == 4 ? 0x45 : 0x60;
	if (ip_version == 4) {
		zdp_store16(packet + 2, (uint16_t)(ip_bytes + upper_bytes));
		zdp_store16(packet + 6, 0x4000);
	} else {
		zdp_store16(packet + 4, (uint16_t)upper_bytes);
	}
	packet[ip_version == 4 ? 9 : 6] = tcp ? 6 : 17;
	if (tcp) {
		upper[12] = 0x80;
		upper[13] = 0x10;
	} else {
		zdp_store16(upper + 4, (uint16_t)upper_bytes);
	}
	zdp_store_checksum(upper + vnet.checksum_offset,
			   zdp_fold(zdp_sum(upper - addresses, addresses) +
				    zdp_pseudo_sum(tcp ? 6 : 17, upper_bytes)));
	return ZDP_VNET_BYTES + ip_bytes + upper_bytes;
}

static size_t cut(size_t read_bytes)
{
	struct zdp_segmenter segmenter;
	size_t count = 0;

	if (zdp_segment_begin(&segmenter, read_buffer, read_bytes, 65535) != ZDP_SEGMENT_OK)
		abort();
	while ((segment_bytes[count] = zdp_segment_next(&segmenter, segments + count * SLOT)))
		if (++count == 64)
			break;
	return count;
}

static void merge(struct zdp_coalescer *coalescer, size_t count)
{
	for (size_t i = 0; i < count; i++)
		zdp_coalesce_add(coalescer, segments + i * SLOT, segment_bytes[i]);
	zdp_coalesce_flush(coalescer);
}

static void verify(size_t count)
{
	for (size_t i = 0; i < count; i++)
		sink += zdp_sum(segments + i * SLOT, segment_bytes[i]);
}

static void copy(size_t count)
{
	for (size_t i = 0; i < count; i++)
		memcpy(segments + i * SLOT, read_buffer + i * segment_bytes[i], segment_bytes[i]);
	__asm__ volatile("" ::: "memory");
}

enum what { CUT, MERGE, ALONE, VERIFY, COPY };

static double measure(enum what what, size_t read_bytes)
{
	struct zdp_coalescer *coalescer =
		zdp_coalescer_new(write_nowhere, NULL, what != ALONE, what != ALONE);
	struct zdp_coalesce_stats stats;
	size_t count = cut(read_bytes);
	double best = 1e9;

	if (!coalescer)
		abort();
	for (int round = 0; round < ROUNDS; round++) {
		double begin = now_ns(), each;

		for (int i = 0; i < REPEATS; i++)
			switch (what) {
			case CUT:
				cut(read_bytes);
				break;
			case MERGE:
			case ALONE:
				merge(coalescer, count);
				break;
			case VERIFY:
				verify(count);
				break;
			case COPY:
				copy(count);
				break;
			}
		each = (now_ns() - begin) / REPEATS / (double)count;
		if (each < best)
			best = each;
	}
	zdp_coalesce_stats(coalescer, &stats);
	if (what == MERGE && stats.merged_packets != stats.packets)
		abort();
	zdp_coalescer_free(coalescer);
	return best;
}

static void row(const char *name, int ip_version, bool tcp, size_t payload_bytes, size_t count)
{
	size_t read_bytes = make_super(ip_version, tcp, payload_bytes, count);

	printf("%-22s %8.1f %8.1f %8.1f %8.1f %8.1f\n", name, measure(CUT, read_bytes),
	       measure(COPY, read_bytes), measure(MERGE, read_bytes), measure(ALONE, read_bytes),
	       measure(VERIFY, read_bytes));
}

int main(void)
{
	printf("%-22s %8s %8s %8s %8s %8s\n", "ns each", "cut", "copy", "merge", "no merge",
	       "checksum");
	row("TCP v4, 1300 x 45", 4, true, 1300, 45);
	row("TCP v6, 1300 x 45", 6, true, 1300, 45);
	row("UDP v4, 1200 x 45", 4, false, 1200, 45);
	row("UDP v4, 64 x 64", 4, false, 64, 64);
	return sink == 1;
}
