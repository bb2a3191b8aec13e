/* SPDX-License-Identifier: Apache-2.0 */
#include "timers.h"

#include <stdlib.h>
#include <string.h>

#include "session.h"

#define FIRST_CAPACITY 16

/* Places count from 1: 0 is a session without a timer. */
static void put(struct zdp_timers *timers, uint32_t at, struct zdp_timer timer)
{
	timers->items[at] = timer;
	timer.session->timer_place = at + 1;
}

static void sift_up(struct zdp_timers *timers, uint32_t at)
{
	const struct zdp_timer timer = timers->items[at];

	while (at && timers->items[(at - 1) / 2].due_ns > timer.due_ns) {
		put(timers, at, timers->items[(at - 1) / 2]);
		at = (at - 1) / 2;
	}
	put(timers, at, timer);
}

static void sift_down(struct zdp_timers *timers, uint32_t at)
{
	const struct zdp_timer timer = timers->items[at];

	for (;;) {
		uint32_t child = 2 * at + 1;

		if (child >= timers->count)
			break;
		if (child + 1 < timers->count &&
		    timers->items[child + 1].due_ns < timers->items[child].due_ns)
			child++;
		if (timers->items[child].due_ns >= timer.due_ns)
			break;
		put(timers, at, timers->items[child]);
		at = child;
	}
	put(timers, at, timer);
}

static bool make_room(struct zdp_timers *timers)
{
	const uint32_t capacity = timers->capacity ? timers->capacity * 2 : FIRST_CAPACITY;
	struct zdp_timer *items;

	if (timers->count < timers->capacity)
		return true;
	items = realloc(timers->items, capacity * sizeof(*items));
	if (!items)
		return false;
	timers->items = items;
	timers->capacity = capacity;
	return true;
}

bool zdp_timers_set(struct zdp_timers *timers, struct zdp_session *session, uint64_t due_ns)
{
	uint32_t at;

	if (!session->timer_place) {
		if (!make_room(timers))
			return false;
		put(timers, timers->count++, (struct zdp_timer){ due_ns, session });
	}
	at = session->timer_place - 1;
	timers->items[at].due_ns = due_ns;
	sift_up(timers, at);
	sift_down(timers, session->timer_place - 1);
	return true;
}

void zdp_timers_remove(struct zdp_timers *timers, struct zdp_session *session)
{
	const uint32_t at = session->timer_place - 1;
	struct zdp_session *moved;

	if (!session->timer_place)
		return;
	session->timer_place = 0;
	timers->count--;
	if (at == timers->count)
		return;
	moved = timers->items[timers->count].session;
	put(timers, at, timers->items[timers->count]);
	sift_up(timers, at);
	sift_down(timers, moved->timer_place - 1);
}

uint64_t zdp_timers_next_ns(const struct zdp_timers *timers)
{
	return timers->count ? timers->items[0].due_ns : UINT64_MAX;
}

struct zdp_session *zdp_timers_first(const struct zdp_timers *timers)
{
	return timers->count ? timers->items[0].session : NULL;
}

void zdp_timers_free(struct zdp_timers *timers)
{
	free(timers->items);
	memset(timers, 0, sizeof(*timers));
}
