/* SPDX-License-Identifier: Apache-2.0 */
/* One connection as the engine sees it: keys, path, the session's packets in and out, and its
 * acknowledgements. Sans-IO: carrier.c moves the bytes.
 *
 * A packet's way in: zdp_session_receive opens a batch, takes what holds only PADDING, PING, ACK and
 * DATAGRAM frames, and gives the IP packets of known address pairs to the coalescer. Everything
 * else is reported, for aioquic and for Python's packet gate to judge.
 * A packet's way out: zdp_session_send_read, zdp_session_send_frame or zdp_session_drain fill the
 * outbox with payloads, as many as the congestion window takes; what has no room waits in the queue. */
#ifndef ZDP_SESSION_H
#define ZDP_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "offload.h"
#include "packet.h"
#include "pairs.h"
#include "path.h"
#include "queue.h"
#include "ranges.h"
#include "recovery.h"
#include "report.h"

#define ZDP_NEVER UINT64_MAX
#define ZDP_PREFIX_MAX_BYTES 16

/* A path MTU probe under way (RFC 8899); its loss says nothing about congestion. */
struct zdp_probe {
	uint64_t number; /* ZDP_NEVER: none */
	uint64_t lost_at_ns;
	uint32_t bytes;
};

struct zdp_session_counters {
	uint64_t opened_packets, sealed_packets, forged_packets, duplicate_packets, foreign_packets;
	uint64_t received_packets, received_bytes; /* IP packets into the TUN, by the fast path */
	uint64_t sent_packets, sent_bytes;         /* IP packets sealed; a segment counts as one */
	uint64_t queue_dropped, too_big, acks_sent, unsendable;
};

struct zdp_session {
	void *owner; /* binding_session.c's */
	/* In. */
	struct zdp_opener opener;
	struct zdp_ranges received;
	struct zdp_ecn_counts ecn;
	uint64_t largest_received_ns;
	uint64_t last_received_ns;
	uint64_t first_packet_ns;  /* the first IP packet into the TUN; 0: none yet */
	uint64_t ack_due_ns;       /* ZDP_NEVER: nothing to acknowledge */
	uint32_t ack_batches;      /* received since the last ACK */
	bool batch_is_eliciting;
	uint64_t ping_number;      /* an ACK of ours that asked for one: ZDP_NEVER when none */
	uint64_t ping_acknowledges;
	struct zdp_pairs inbound, outbound;
	/* Out. */
	struct zdp_sealer sealer;
	struct zdp_recovery *recovery;
	struct zdp_queue *queue;
	struct zdp_probe probe;
	uint64_t phase_began_at;   /* the first number sealed under the present key */
	uint64_t first_sent_ns;    /* the first ack-eliciting packet since the last received one */
	uint32_t max_packet_bytes; /* UDP payload */
	uint32_t max_frame_payload_bytes;
	uint8_t prefix[ZDP_PREFIX_MAX_BYTES]; /* of every datagram: quarter stream ID, context ID */
	uint8_t prefix_bytes;
	uint64_t key_update_packets; /* ask for new keys after so many */
	bool is_client;
	bool spin_is_off; /* this connection does not tell its RTT to who watches */
	bool key_told;
	bool is_direct;            /* IP packets go to and come from the TUN here */
	bool may_send;             /* the path is validated and the connection is not ending */
	uint64_t unproved_bytes;   /* received while we may not send: credit for aioquic's challenge */
	bool foreign_in_flight;    /* aioquic waits for ACKs of packets of its own */
	struct zdp_path path;
	struct zdp_session_counters counters;
	/* The carrier's: those that have something to do now, and those that will have. */
	TAILQ_ENTRY(zdp_session) active;
	bool is_active;
	uint32_t timer_place;
};

bool zdp_session_init(struct zdp_session *session, const struct zdp_recovery_config *recovery);
void zdp_session_free(struct zdp_session *session);

/* One packet of a batch, addressed to this session from its own path. */
struct zdp_received {
	const uint8_t *packet;
	size_t bytes;
};

/* `plain` has room for the sum of the packets' bytes, and must stay as it is until the coalescer has
 * been flushed. At most ZDP_OPEN_BATCH packets. */
void zdp_session_receive(struct zdp_session *session, const struct zdp_received *packets,
			 size_t count, uint8_t ecn, uint8_t *plain, uint64_t now_ns,
			 struct zdp_coalescer *tun, struct zdp_reports *reports);
/* Packets addressed to this session, but from elsewhere: the authentic and new ones are reported. */
void zdp_session_sift(struct zdp_session *session, const struct zdp_received *packets, size_t count,
		      uint8_t *plain, const struct zdp_path *from, struct zdp_reports *reports);
/* A round of receiving is over: is an ACK due at once? */
void zdp_session_batch_done(struct zdp_session *session, uint64_t now_ns);
/* aioquic took these packets itself; the engine writes their ACK. */
bool zdp_session_note_received(struct zdp_session *session, uint64_t first, uint64_t last,
			       bool eliciting, uint64_t now_ns);

/* Packets on their way to the socket, of any number of sessions. */
struct zdp_outbox;
struct zdp_outbox *zdp_outbox_new(void);
void zdp_outbox_free(struct zdp_outbox *outbox);

enum zdp_send_result {
	ZDP_SEND_DONE,     /* in the outbox, or queued */
	ZDP_SEND_DROPPED,  /* counted */
	ZDP_SEND_TOO_BIG,  /* Packet Too Big is Python's to say */
	ZDP_SEND_UNKNOWN,  /* the address pair has not been judged yet */
};

/* A read of the TUN: vnet header and packet. `judged`: the pair need not be known. */
enum zdp_send_result zdp_session_send_read(struct zdp_session *session, struct zdp_outbox *outbox,
					   const uint8_t *read, size_t bytes, bool judged,
					   uint64_t now_ns);
/* The payload of a DATAGRAM frame of Python's making. */
enum zdp_send_result zdp_session_send_frame(struct zdp_session *session, struct zdp_outbox *outbox,
					    const uint8_t *payload, size_t bytes, uint64_t now_ns);
/* Sends from the queue as much as may be sent; an ACK and a probe timeout's PING when due. */
void zdp_session_drain(struct zdp_session *session, struct zdp_outbox *outbox, uint64_t now_ns,
		       struct zdp_reports *reports);
/* When zdp_session_drain is wanted next; ZDP_NEVER: not before something arrives. */
uint64_t zdp_session_deadline(const struct zdp_session *session, uint64_t now_ns);

/* Nothing is under way: give back what an idle session need not hold. */
void zdp_session_rest(struct zdp_session *session);

/* Seals a path MTU probe of exactly `bytes`; its end is reported. 0 when nothing can be sent. */
size_t zdp_session_seal_probe(struct zdp_session *session, uint8_t *out, size_t bytes,
			      uint64_t now_ns);

#endif
