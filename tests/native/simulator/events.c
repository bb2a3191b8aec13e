/* SPDX-License-Identifier: Apache-2.0 */
/* Chance, and the heap of what is to happen. */

static double chance(struct simulation *sim)
{
	sim->random ^= sim->random << 13;
	sim->random ^= sim->random >> 7;
	sim->random ^= sim->random << 17;
	return (double)(sim->random >> 11) / 9007199254740992.0;
}

static uint64_t ns(double seconds)
{
	return (uint64_t)(seconds * 1e9);
}

static bool before(const struct event *a, const struct event *b)
{
	return a->at < b->at || (a->at == b->at && a->order < b->order);
}

static void push(struct simulation *sim, struct event event)
{
	size_t at = sim->count++;

	if (sim->count > sim->capacity) {
		sim->capacity = sim->capacity ? sim->capacity * 2 : 1024;
		sim->heap = realloc(sim->heap, sim->capacity * sizeof(event));
	}
	event.order = sim->order++;
	while (at && before(&event, &sim->heap[(at - 1) / 2])) {
		sim->heap[at] = sim->heap[(at - 1) / 2];
		at = (at - 1) / 2;
	}
	sim->heap[at] = event;
}

static struct event pop(struct simulation *sim)
{
	struct event first = sim->heap[0], last = sim->heap[--sim->count];
	size_t at = 0, child;

	while ((child = 2 * at + 1) < sim->count) {
		if (child + 1 < sim->count && before(&sim->heap[child + 1], &sim->heap[child]))
			child++;
		if (!before(&sim->heap[child], &last))
			break;
		sim->heap[at] = sim->heap[child];
		at = child;
	}
	sim->heap[at] = last;
	return first;
}
