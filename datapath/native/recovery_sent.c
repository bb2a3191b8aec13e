/* SPDX-License-Identifier: Apache-2.0 */
#include "recovery_sent.h"

#include <stdlib.h>
#include <string.h>

#define LEAST_CAPACITY 4
/* An empty ring of up to this many runs is kept: traffic that comes and goes allocates nothing. */
#define KEPT_CAPACITY 4

static bool resize(struct zdp_sent *sent, uint32_t capacity)
{
	struct zdp_sent_run *runs = malloc(capacity * sizeof(*runs));

	if (runs == NULL)
		return false;
	for (uint32_t at = sent->head; at != sent->tail; at++)
		runs[at & (capacity - 1)] = *zdp_sent_at(sent, at);
	free(sent->runs);
	sent->runs = runs;
	sent->capacity = capacity;
	return true;
}

struct zdp_sent_run *zdp_sent_push(struct zdp_sent *sent, uint64_t first, uint8_t count,
				   uint16_t bytes)
{
	struct zdp_sent_run *run;

	if (sent->tail - sent->head == sent->capacity &&
	    !resize(sent, sent->capacity ? sent->capacity * 2 : LEAST_CAPACITY))
		return NULL;
	run = zdp_sent_at(sent, sent->tail++);
	memset(run, 0, sizeof(*run));
	run->first = first;
	run->count = count;
	run->bytes = bytes;
	run->skip = 1;
	run->outstanding = zdp_run_all(run);
	sent->packets += count;
	sent->bytes += (uint64_t)count * bytes;
	return run;
}

bool zdp_sent_find(const struct zdp_sent *sent, uint64_t number, uint32_t hint, uint32_t *position)
{
	uint32_t low = 0, high = hint - sent->head;

	if (sent->head == sent->tail || zdp_sent_at(sent, sent->head)->first > number)
		return false;
	/* Ranges of an ACK lie close together: the hint, or the run below it, is most often right. */
	for (int tries = 0; tries < 2 && high > low; tries++) {
		if (hint - (uint32_t)tries == sent->tail)
			continue;
		if (zdp_sent_at(sent, hint - (uint32_t)tries)->first <= number) {
			*position = hint - (uint32_t)tries;
			return true;
		}
		high = hint - (uint32_t)tries - sent->head;
	}
	while (high - low > 1) {
		uint32_t middle = low + (high - low) / 2;

		if (zdp_sent_at(sent, sent->head + middle)->first <= number)
			low = middle;
		else
			high = middle;
	}
	*position = sent->head + low;
	return true;
}

void zdp_sent_settle(struct zdp_sent *sent)
{
	while (sent->oldest != sent->tail && zdp_sent_at(sent, sent->oldest)->outstanding == 0)
		sent->oldest++;
}

static void give_back(struct zdp_sent *sent)
{
	if (sent->capacity <= KEPT_CAPACITY)
		return;
	free(sent->runs);
	sent->runs = NULL;
	sent->capacity = 0;
}

void zdp_sent_prune(struct zdp_sent *sent, uint64_t lost_before_ns)
{
	zdp_sent_settle(sent);
	while (sent->head != sent->oldest) {
		const struct zdp_sent_run *run = zdp_sent_at(sent, sent->head);

		if (run->lost && run->sent_ns > lost_before_ns)
			break;
		sent->head++;
	}
	if (sent->head == sent->tail)
		give_back(sent);
}

void zdp_sent_free(struct zdp_sent *sent)
{
	free(sent->runs);
	memset(sent, 0, sizeof(*sent));
}
