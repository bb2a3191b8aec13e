/* SPDX-License-Identifier: Apache-2.0 */
/* Which session is due next: a binary heap, so that a thousand sessions that wait cost nothing. */
#ifndef ZDP_TIMERS_H
#define ZDP_TIMERS_H

#include <stdbool.h>
#include <stdint.h>

struct zdp_session;

struct zdp_timer {
	uint64_t due_ns;
	struct zdp_session *session; /* whose timer_place says where it is in the heap */
};

struct zdp_timers {
	struct zdp_timer *items;
	uint32_t count, capacity;
};

/* Replaces what was set. False: no memory, and nothing is set. */
bool zdp_timers_set(struct zdp_timers *timers, struct zdp_session *session, uint64_t due_ns);
void zdp_timers_remove(struct zdp_timers *timers, struct zdp_session *session);
/* The one that is due first; UINT64_MAX, NULL: none. */
uint64_t zdp_timers_next_ns(const struct zdp_timers *timers);
struct zdp_session *zdp_timers_first(const struct zdp_timers *timers);
void zdp_timers_free(struct zdp_timers *timers);

#endif
