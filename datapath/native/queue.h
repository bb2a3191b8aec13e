/* SPDX-License-Identifier: Apache-2.0 */
/* The packets of one session that wait for its congestion window: FQ-CoDel (RFC 8290), so that the
 * queue is bounded by time and a ping does not wait behind a bulk transfer.
 *
 * A packet is what one read of the TUN gave: a super-packet stays whole here and is cut when it is
 * sent. Idle queues own no memory. */
#ifndef ZDP_QUEUE_H
#define ZDP_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct zdp_queued {
	struct zdp_queued *next;
	uint64_t enqueued_ns;
	uint32_t flow_hash;
	uint32_t bytes; /* of data */
	uint32_t sent_bytes; /* the sender's note of how far it has come; 0 when it begins */
	uint8_t kind; /* the sender's: what `data` is */
	uint8_t data[];
};

struct zdp_queue_limits {
	uint64_t target_ns;   /* CoDel's target sojourn; 5 ms */
	uint64_t interval_ns; /* 100 ms */
	uint32_t max_bytes;   /* of all flows: the longest flow loses its head */
	uint32_t quantum_bytes;
};

struct zdp_queue; /* made on first use, freed when it has been empty */

/* Why a packet left the queue unsent. */
enum zdp_queue_drop { ZDP_QUEUE_DROP_CODEL, ZDP_QUEUE_DROP_FULL };
/* Tells the owner; the packet is freed afterwards. */
typedef void (*zdp_queue_drop_fn)(void *owner, const struct zdp_queued *packet,
				  enum zdp_queue_drop why);
/* Sets Congestion Experienced in the packet instead of dropping it; false when it is not ECN-capable.
 * May be NULL. */
typedef bool (*zdp_queue_mark_fn)(struct zdp_queued *packet);

struct zdp_queue *zdp_queue_new(const struct zdp_queue_limits *limits, zdp_queue_drop_fn drop,
				zdp_queue_mark_fn mark, void *owner);
void zdp_queue_free(struct zdp_queue *queue); /* with all packets, without telling */
struct zdp_queued *zdp_queued_new(uint32_t bytes); /* malloc'd; NULL: no memory */
void zdp_queued_free(struct zdp_queued *packet);

/* Takes ownership. */
void zdp_queue_put(struct zdp_queue *queue, struct zdp_queued *packet, uint64_t now_ns);
/* The next to send, CoDel's drops done; stays owned by the queue until zdp_queue_done. NULL: empty.
 * The same packet is returned until it is done, so that a super-packet can be sent in parts; a
 * new packet of a sparse flow may go before its rest. */
struct zdp_queued *zdp_queue_head(struct zdp_queue *queue, uint64_t now_ns);
/* `bytes` of the head were sent now (for fairness); `all`: it is finished, and freed. */
void zdp_queue_done(struct zdp_queue *queue, struct zdp_queued *head, uint32_t bytes, bool all);
bool zdp_queue_is_empty(const struct zdp_queue *queue);
uint32_t zdp_queue_packets(const struct zdp_queue *queue);
uint32_t zdp_queue_bytes(const struct zdp_queue *queue);

/* Flow hash of an IP packet (addresses, protocol, ports), never out of bounds. */
uint32_t zdp_flow_hash(const uint8_t *packet, size_t bytes);

#endif
