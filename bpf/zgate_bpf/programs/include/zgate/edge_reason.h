/* SPDX-License-Identifier: Apache-2.0 */
/* What became of a packet to the gateway's UDP port, and why: zgate_bpf.edge_layouts.EdgeReason
 * says the same for Python. The loader compiles the two against each other. */
#ifndef ZGATE_EDGE_REASON_H
#define ZGATE_EDGE_REASON_H

enum zg_edge_reason {
	ZG_EDGE_NOT_OURS = 0,            /* passed, not looked at, not counted */

	/* Passed. */
	ZG_EDGE_SHORT_HEADER = 1,
	ZG_EDGE_HANDSHAKE = 2,
	ZG_EDGE_INITIAL = 3,
	ZG_EDGE_VERSION_TRICKLE = 4,     /* unknown version, few enough to be answered */

	/* Dropped. */
	ZG_EDGE_FIRST_DROP = 8,
	ZG_EDGE_BLOCKLISTED = 8,
	ZG_EDGE_FRAGMENT = 9,            /* RFC 9000 14: QUIC is never fragmented */
	ZG_EDGE_MALFORMED = 10,          /* lengths that contradict each other */
	ZG_EDGE_TOO_SHORT = 11,          /* for any QUIC packet */
	ZG_EDGE_FIXED_BIT = 12,          /* RFC 9000 17.2, 17.3.1 */
	ZG_EDGE_UNKNOWN_VERSION = 13,    /* too small to be answered, or too many */
	ZG_EDGE_PACKET_TYPE = 14,        /* none that a client may send us */
	ZG_EDGE_CONNECTION_ID = 15,      /* of a length that no client can use here */
	ZG_EDGE_UNKNOWN_CONNECTION = 16, /* a connection ID that we never gave */
	ZG_EDGE_INITIAL_TOO_SMALL = 17,  /* RFC 9000 14.1 */
	ZG_EDGE_SOURCE_RATE = 18,        /* too many Initials of one source */
	ZG_EDGE_TOTAL_RATE = 19,         /* too many Initials of all sources together */
	ZG_EDGE_REASONS = 32,            /* how many counters there are */
};

#endif
