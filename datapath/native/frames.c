/* SPDX-License-Identifier: Apache-2.0 */
#include "frames.h"

#include "bytes.h"

enum {
	FRAME_PADDING = 0x00,
	FRAME_PING = 0x01,
	FRAME_ACK = 0x02,
	FRAME_ACK_ECN = 0x03,
	FRAME_DATAGRAM = 0x30,
	FRAME_DATAGRAM_LENGTH = 0x31,
};

/* What is left of a payload. */
struct reader {
	const uint8_t *at, *end;
};

static bool read_varint(struct reader *reader, uint64_t *value)
{
	size_t bytes = zdp_load_varint(reader->at, reader->end, value);

	reader->at += bytes;
	return bytes != 0;
}

static void skip_padding(struct reader *reader)
{
	while (reader->at < reader->end && *reader->at == FRAME_PADDING)
		reader->at++;
}

static void keep_range(struct zdp_ack *ack, uint64_t first, uint64_t last)
{
	if (ack->count == ZDP_MAX_ACK_RANGES)
		ack->cut = true;
	else
		ack->ranges[ack->count++] = (struct zdp_range){ first, last };
}

/* RFC 9000 section 19.3.1. Every range takes bytes of the payload, so the count is bounded by it. */
static bool read_ranges(struct reader *reader, struct zdp_ack *ack, uint64_t last, uint64_t more)
{
	uint64_t length, gap, first;

	for (;;) {
		if (!read_varint(reader, &length) || length > last)
			return false;
		first = last - length;
		keep_range(ack, first, last);
		if (!more--)
			return true;
		/* The gap's numbers are one more than it says, and so is the step to a range's end. */
		if (!read_varint(reader, &gap) || first < 2 || gap > first - 2)
			return false;
		last = first - 2 - gap;
	}
}

static bool read_ack(struct reader *reader, bool has_ecn, struct zdp_ack *ack)
{
	uint64_t largest, more;

	ack->count = 0;
	ack->cut = false;
	ack->has_ecn = has_ecn;
	ack->ecn = (struct zdp_ecn_counts){ 0 };
	if (!read_varint(reader, &largest) || !read_varint(reader, &ack->delay) ||
	    !read_varint(reader, &more) || !read_ranges(reader, ack, largest, more))
		return false;
	return !has_ecn ||
	       (read_varint(reader, &ack->ecn.ect0) && read_varint(reader, &ack->ecn.ect1) &&
		read_varint(reader, &ack->ecn.ce));
}

/* RFC 9221 section 4. Without a length it takes the rest of the packet. */
static bool read_datagram(struct reader *reader, bool has_length, struct zdp_frames *frames)
{
	uint64_t bytes = (uint64_t)(reader->end - reader->at);

	if (frames->datagram_count == ZDP_MAX_DATAGRAMS)
		return false;
	if (has_length && (!read_varint(reader, &bytes) ||
			   bytes > (uint64_t)(reader->end - reader->at)))
		return false;
	frames->datagrams[frames->datagram_count++] =
		(struct zdp_datagram){ reader->at, (size_t)bytes };
	reader->at += bytes;
	return true;
}

/* Types longer than they need be are aioquic's to judge (RFC 9000 section 12.4). */
static bool read_frame(struct reader *reader, struct zdp_frames *frames)
{
	uint8_t type = *reader->at++;

	switch (type) {
	case FRAME_PADDING:
		skip_padding(reader);
		return true;
	case FRAME_PING:
		frames->ack_eliciting = true;
		return true;
	case FRAME_ACK:
	case FRAME_ACK_ECN:
		if (frames->has_ack)
			return false;
		frames->has_ack = read_ack(reader, type == FRAME_ACK_ECN, &frames->ack);
		return frames->has_ack;
	case FRAME_DATAGRAM:
	case FRAME_DATAGRAM_LENGTH:
		frames->ack_eliciting = true;
		return read_datagram(reader, type == FRAME_DATAGRAM_LENGTH, frames);
	default:
		return false;
	}
}

enum zdp_frames_result zdp_parse_frames(const uint8_t *payload, size_t bytes,
					struct zdp_frames *frames)
{
	struct reader reader = { payload, payload };

	frames->ack_eliciting = false;
	frames->has_ack = false;
	frames->datagram_count = 0;
	if (!bytes)
		return ZDP_FRAMES_OTHER;
	reader.end += bytes;
	while (reader.at < reader.end)
		if (!read_frame(&reader, frames))
			return ZDP_FRAMES_OTHER;
	return ZDP_FRAMES_OURS;
}

/* Writing. The count of further ranges is one byte long: it is known after them. */
_Static_assert(ZDP_RANGES_MAX - 1 < 64, "the range count's varint has one byte");

struct writer {
	uint8_t *at, *end;
};

/* False, and nothing written, when it does not fit. */
static bool write_varint(struct writer *writer, uint64_t value)
{
	if (zdp_varint_bytes(value) > (size_t)(writer->end - writer->at))
		return false;
	writer->at += zdp_store_varint(writer->at, value);
	return true;
}

static bool write_range(struct writer *writer, const struct zdp_range *above,
			const struct zdp_range *range)
{
	uint8_t *begin = writer->at;

	if (write_varint(writer, above->first - range->last - 2) &&
	    write_varint(writer, range->last - range->first))
		return true;
	writer->at = begin;
	return false;
}

static size_t ecn_bytes(const struct zdp_ecn_counts *ecn)
{
	return ecn ? zdp_varint_bytes(ecn->ect0) + zdp_varint_bytes(ecn->ect1) +
			     zdp_varint_bytes(ecn->ce)
		   : 0;
}

size_t zdp_write_ack(uint8_t *out, size_t room, const struct zdp_ranges *received, uint64_t delay,
		     const struct zdp_ecn_counts *ecn)
{
	const struct zdp_range *ranges = received->items;
	size_t reserved = ecn_bytes(ecn);
	struct writer writer = { out, out };
	uint8_t *more;
	uint32_t written = 1;

	if (!received->count || room < reserved)
		return 0;
	writer.end += room - reserved;
	if (!write_varint(&writer, ecn ? FRAME_ACK_ECN : FRAME_ACK) ||
	    !write_varint(&writer, ranges[0].last) || !write_varint(&writer, delay))
		return 0;
	more = writer.at;
	if (!write_varint(&writer, 0) ||
	    !write_varint(&writer, ranges[0].last - ranges[0].first))
		return 0;
	while (written < received->count &&
	       write_range(&writer, &ranges[written - 1], &ranges[written]))
		written++;
	*more = (uint8_t)(written - 1);
	if (ecn) {
		writer.at += zdp_store_varint(writer.at, ecn->ect0);
		writer.at += zdp_store_varint(writer.at, ecn->ect1);
		writer.at += zdp_store_varint(writer.at, ecn->ce);
	}
	return (size_t)(writer.at - out);
}
