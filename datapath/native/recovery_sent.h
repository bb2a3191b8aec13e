/* SPDX-License-Identifier: Apache-2.0 */
/* The packets that are in flight: a ring of runs. Packets of a run have consecutive numbers, one size
 * and one sending time, as a GSO batch has; each has two bits of its own. */
#ifndef ZDP_RECOVERY_SENT_H
#define ZDP_RECOVERY_SENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ZDP_RUN_PACKETS 64
#define ZDP_AGE_SHIFT 8 /* ages are kept in units of 256 ns: up to 18 minutes */

/* What the connection had delivered when a run was sent: the one end of a rate sample
 * (draft-ietf-ccwg-bbr section 4.1). */
struct zdp_sent_run {
	uint64_t first; /* packet number */
	uint64_t sent_ns;
	uint64_t outstanding; /* bit i: packet first + i is in flight */
	uint64_t lost;	      /* bit i: declared lost; an ACK may still come */
	uint64_t delivered;   /* bytes */
	uint32_t delivered_age, first_sent_age; /* before sent_ns, see ZDP_AGE_SHIFT */
	uint32_t in_flight;   /* bytes, this run included; UINT32_MAX: that or more */
	uint32_t skip;	      /* as many runs downwards, this one included, hold no bits */
	uint16_t bytes;	      /* of each packet */
	uint8_t count;
	bool app_limited, marked_ect0;
};

/* Positions count up for ever and are taken modulo the capacity. */
struct zdp_sent {
	struct zdp_sent_run *runs;
	uint32_t capacity; /* a power of two; 0: nothing allocated */
	uint32_t head, tail; /* [head, tail) */
	uint32_t oldest; /* no run before it has outstanding packets */
	uint32_t packets; /* in flight */
	uint64_t bytes;
};

static inline struct zdp_sent_run *zdp_sent_at(const struct zdp_sent *sent, uint32_t position)
{
	return &sent->runs[position & (sent->capacity - 1)];
}

static inline uint64_t zdp_run_all(const struct zdp_sent_run *run)
{
	return run->count == 64 ? UINT64_MAX : (1ULL << run->count) - 1;
}

static inline uint64_t zdp_run_last(const struct zdp_sent_run *run)
{
	return run->first + run->count - 1;
}

/* A run at the end, all of it outstanding; the caller fills in the rest. NULL: no memory. */
struct zdp_sent_run *zdp_sent_push(struct zdp_sent *sent, uint64_t first, uint8_t count,
				   uint16_t bytes);
/* The position of the last run that begins at or before `number`; false: all begin after it.
 * `hint`: where it is likely, from an earlier answer for a larger number; `tail` otherwise. */
bool zdp_sent_find(const struct zdp_sent *sent, uint64_t number, uint32_t hint, uint32_t *position);
/* Moves `oldest` on to the first run with outstanding packets, or to the end. */
void zdp_sent_settle(struct zdp_sent *sent);
/* Forgets runs from the head that hold no bits, and lost ones sent at or before `lost_before_ns`;
 * gives memory back when all are gone. */
void zdp_sent_prune(struct zdp_sent *sent, uint64_t lost_before_ns);
void zdp_sent_free(struct zdp_sent *sent);

#endif
