/* SPDX-License-Identifier: Apache-2.0 */
/* The frames that the engine reads and writes itself: PADDING, PING, ACK, ACK_ECN (RFC 9000
 * section 19) and DATAGRAM (RFC 9221 section 4). A packet that holds any other is aioquic's. */
#ifndef ZDP_FRAMES_H
#define ZDP_FRAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ranges.h"

struct zdp_ecn_counts {
	uint64_t ect0, ect1, ce;
};

#define ZDP_MAX_ACK_RANGES 64
struct zdp_ack {
	uint64_t delay; /* as on the wire: scaled by the sender's ack_delay_exponent */
	bool has_ecn;
	struct zdp_ecn_counts ecn;
	size_t count; /* ranges, largest first */
	struct zdp_range ranges[ZDP_MAX_ACK_RANGES];
	bool cut; /* it had more ranges: the smallest are left out */
};

struct zdp_datagram {
	const uint8_t *data;
	size_t bytes;
};

enum zdp_frames_result {
	ZDP_FRAMES_OURS,  /* PADDING, PING, ACK and DATAGRAM only, all well-formed */
	ZDP_FRAMES_OTHER, /* something else, or malformed: aioquic's to handle or to refuse */
};

#define ZDP_MAX_DATAGRAMS 128
struct zdp_frames {
	bool ack_eliciting;
	bool has_ack;
	struct zdp_ack ack;
	size_t datagram_count;
	struct zdp_datagram datagrams[ZDP_MAX_DATAGRAMS]; /* point into the payload */
};

/* Parses a whole packet payload. Of one that is ZDP_FRAMES_OTHER `has_ack` and `ack` are right too:
 * an ACK that stands before the frame that is not ours. More than one ACK frame, or more than ZDP_MAX_DATAGRAMS
 * datagrams, make it ZDP_FRAMES_OTHER; so does an empty payload (RFC 9000 section 12.4). */
enum zdp_frames_result zdp_parse_frames(const uint8_t *payload, size_t bytes,
					struct zdp_frames *frames);

/* Writes an ACK frame (ACK_ECN when `ecn` is given) of as many ranges, largest first, as fit into
 * `room`; its length, or 0 when not even one range fits or the set is empty. `delay` is scaled
 * already. */
size_t zdp_write_ack(uint8_t *out, size_t room, const struct zdp_ranges *received, uint64_t delay,
		     const struct zdp_ecn_counts *ecn);

#endif
