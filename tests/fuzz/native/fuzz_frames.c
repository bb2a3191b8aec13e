/* sources: frames.c */
/* SPDX-License-Identifier: Apache-2.0 */
/* The frame parser; and where it finds an ACK, the ACK writer, whose frame must say the same. */
#include "frames.h"

#include "bytes.h"
#include "fuzz.h"

/* The ranges' order and the datagrams' place. */
static void check_parsed(const struct zdp_frames *frames, const uint8_t *payload, size_t bytes)
{
	check(frames->datagram_count <= ZDP_MAX_DATAGRAMS);
	check(frames->ack_eliciting || !frames->datagram_count);
	for (size_t i = 0; i < frames->datagram_count; i++) {
		const struct zdp_datagram *datagram = &frames->datagrams[i];

		check(datagram->data > payload && datagram->bytes < bytes);
		check(datagram->data + datagram->bytes <= payload + bytes);
		check(!i || datagram->data > datagram[-1].data + datagram[-1].bytes);
	}
	if (!frames->has_ack)
		return;
	check(frames->ack.count && frames->ack.count <= ZDP_MAX_ACK_RANGES);
	check(!frames->ack.cut || frames->ack.count == ZDP_MAX_ACK_RANGES);
	for (size_t i = 0; i < frames->ack.count; i++) {
		const struct zdp_range *range = &frames->ack.ranges[i];

		check(range->first <= range->last && range->last <= ZDP_VARINT_MAX);
		check(!i || range[-1].first - range->last >= 2);
		check(!i || range[-1].first > range->last);
	}
}

static void check_same(const struct zdp_ack *a, const struct zdp_ack *b, size_t ranges)
{
	check(a->delay == b->delay && a->has_ecn == b->has_ecn);
	check(a->ecn.ect0 == b->ecn.ect0 && a->ecn.ect1 == b->ecn.ect1 && a->ecn.ce == b->ecn.ce);
	check(b->count == ranges && !b->cut);
	check(!memcmp(a->ranges, b->ranges, ranges * sizeof(*a->ranges)));
}

/* Writes the ACK into a block of `room` bytes and reads it back; how many ranges came through. */
static size_t write_and_read(const struct zdp_ack *ack, size_t room)
{
	static struct zdp_range items[ZDP_RANGES_MAX];
	struct zdp_ranges received = { (uint32_t)ack->count, ZDP_RANGES_MAX, items };
	struct zdp_frames *again = malloc(sizeof(*again));
	uint8_t *out = malloc(room ? room : 1);
	size_t bytes, count = 0;

	check(again && out);
	memcpy(items, ack->ranges, ack->count * sizeof(*items));
	bytes = zdp_write_ack(out, room, &received, ack->delay, ack->has_ecn ? &ack->ecn : NULL);
	check(bytes <= room);
	if (bytes) {
		check(zdp_parse_frames(out, bytes, again) == ZDP_FRAMES_OURS);
		check(again->has_ack && !again->ack_eliciting && !again->datagram_count);
		count = again->ack.count;
		check(count <= ack->count);
		check_same(ack, &again->ack, count);
	}
	free(out);
	free(again);
	return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, data + size };
	size_t room = take_byte(&input), bytes = left(&input);
	uint8_t *payload = take_block(&input, &bytes);
	struct zdp_frames *frames = malloc(sizeof(*frames));

	check(frames);
	memset(frames, 0xa5, sizeof(*frames));
	if (zdp_parse_frames(payload, bytes, frames) == ZDP_FRAMES_OURS) {
		check(bytes);
		check_parsed(frames, payload, bytes);
		if (frames->has_ack) {
			/* Type, largest, delay, count, ECN and all ranges at their longest. */
			size_t enough = 1 + 3 * 8 + 3 * 8 + ZDP_MAX_ACK_RANGES * 16;

			check(write_and_read(&frames->ack, enough) == frames->ack.count);
			write_and_read(&frames->ack, room);
		}
	}
	free(frames);
	free(payload);
	return 0;
}
