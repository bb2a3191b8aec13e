/* SPDX-License-Identifier: Apache-2.0 */
/* Packets on their way to the socket; see outbox.c. For session.c and carrier.c. */
#ifndef ZDP_OUTBOX_H
#define ZDP_OUTBOX_H

#include "session.h"

#define ZDP_OUT_RUNS 256
#define ZDP_GSO_MAX_SEGMENTS 64
#define ZDP_GSO_MAX_BYTES 65000
/* Room for a batch of 64 packets; a path with jumbo frames fills it with fewer. */
#define ZDP_PLAIN_BYTES (160U << 10)
/* Full at half of this: what is sealed goes to the socket while the processor's cache has it. */
#define ZDP_SEALED_BYTES (320U << 10)

/* Equal-sized packets in a row, the last may be shorter: one GSO send. */
struct zdp_out_run {
	struct zdp_session *session;
	const uint8_t *data;
	size_t bytes;
	uint16_t segment_bytes;
	uint16_t count;
	bool is_ect; /* to be marked ECT(0) */
};

struct zdp_outbox {
	/* Payloads of one session, not yet sealed. */
	struct zdp_session *session;
	uint64_t now_ns;
	uint64_t budget_bytes; /* what the congestion window still takes */
	struct zdp_seal_job jobs[ZDP_OPEN_BATCH];
	bool eliciting[ZDP_OPEN_BATCH];
	size_t job_count;
	bool is_open; /* the last payload takes more datagrams */
	size_t last_room; /* bytes that the last payload may have */
	uint8_t *plain;
	size_t plain_used;
	/* Sealed packets of any session. */
	uint8_t *sealed;
	size_t sealed_used;
	struct zdp_out_run runs[ZDP_OUT_RUNS];
	size_t run_count;
};

/* What follows is this session's. */
void zdp_outbox_stage(struct zdp_outbox *outbox, struct zdp_session *session, uint64_t now_ns);
/* Room for a DATAGRAM frame's payload, to be written by the caller; NULL when the window or the
 * outbox is full. */
uint8_t *zdp_outbox_datagram(struct zdp_outbox *outbox, size_t bytes);
/* A packet with an ACK; not limited by the window. */
void zdp_outbox_ack(struct zdp_outbox *outbox);
/* A packet that only asks for an ACK; not limited by the window (RFC 9002 section 7.5). */
void zdp_outbox_ping(struct zdp_outbox *outbox);

/* Seals what waits and returns the runs to send; they stand until zdp_outbox_clear. */
size_t zdp_outbox_runs(struct zdp_outbox *outbox, struct zdp_out_run **runs);
void zdp_outbox_clear(struct zdp_outbox *outbox);
/* No room for another batch of packets: send first. */
bool zdp_outbox_is_full(const struct zdp_outbox *outbox);
bool zdp_outbox_is_empty(const struct zdp_outbox *outbox);
/* Whether packets of this session wait to be sealed: recovery has not been told of them yet. */
bool zdp_outbox_holds(const struct zdp_outbox *outbox, const struct zdp_session *session);
/* The session is about to be freed: forget its packets. */
void zdp_outbox_forget(struct zdp_outbox *outbox, const struct zdp_session *session);

#endif
