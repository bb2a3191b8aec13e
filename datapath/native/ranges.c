/* SPDX-License-Identifier: Apache-2.0 */
#include "ranges.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY 4

void zdp_ranges_free(struct zdp_ranges *ranges)
{
	free(ranges->items);
	memset(ranges, 0, sizeof(*ranges));
}

static bool make_room(struct zdp_ranges *ranges)
{
	uint32_t capacity = ranges->capacity ? ranges->capacity * 2 : FIRST_CAPACITY;
	struct zdp_range *items;

	if (ranges->count < ranges->capacity)
		return true;
	if (capacity > ZDP_RANGES_MAX)
		capacity = ZDP_RANGES_MAX;
	items = realloc(ranges->items, capacity * sizeof(*items));
	if (items == NULL)
		return false;
	ranges->items = items;
	ranges->capacity = capacity;
	return true;
}

/* The first range that is not wholly above `number`, even with one to spare: it holds the number,
 * touches it from above or below, or is what a new range goes in front of. */
static uint32_t position(const struct zdp_ranges *ranges, uint64_t number)
{
	uint32_t low = 0, high = ranges->count;

	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if (ranges->items[middle].first > number && ranges->items[middle].first - 1 > number)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void remove_items(struct zdp_ranges *ranges, uint32_t at, uint32_t count)
{
	memmove(&ranges->items[at], &ranges->items[at + count],
		(ranges->count - at - count) * sizeof(*ranges->items));
	ranges->count -= count;
}

static bool insert_item(struct zdp_ranges *ranges, uint32_t at, uint64_t first, uint64_t last)
{
	if (ranges->count == ZDP_RANGES_MAX) {
		if (at == ranges->count)
			return true; /* it would itself be the smallest */
		ranges->count--;
	}
	if (!make_room(ranges))
		return false;
	memmove(&ranges->items[at + 1], &ranges->items[at],
		(ranges->count - at) * sizeof(*ranges->items));
	ranges->items[at] = (struct zdp_range){first, last};
	ranges->count++;
	return true;
}

bool zdp_ranges_add(struct zdp_ranges *ranges, uint64_t first, uint64_t last)
{
	struct zdp_range *item = ranges->items;
	uint32_t at, end;

	if (first > last)
		return true;
	if (ranges->count && item->last != UINT64_MAX && first == item->last + 1) {
		item->last = last;
		return true;
	}
	at = position(ranges, last);
	item = &ranges->items[at];
	if (at == ranges->count || (item->last < first && item->last + 1 < first))
		return insert_item(ranges, at, first, last);
	/* It touches items[at], and perhaps smaller ones too. */
	if (item->last < last)
		item->last = last;
	if (item->first > first)
		item->first = first;
	for (end = at + 1; end < ranges->count && ranges->items[end].last + 1 >= item->first; end++)
		if (ranges->items[end].first < item->first)
			item->first = ranges->items[end].first;
	remove_items(ranges, at + 1, end - at - 1);
	return true;
}

void zdp_ranges_forget(struct zdp_ranges *ranges, uint64_t last)
{
	while (ranges->count && ranges->items[ranges->count - 1].last <= last)
		ranges->count--;
	if (ranges->count && ranges->items[ranges->count - 1].first <= last)
		ranges->items[ranges->count - 1].first = last + 1;
}

bool zdp_ranges_has(const struct zdp_ranges *ranges, uint64_t number)
{
	uint32_t low = 0, high = ranges->count;

	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if (ranges->items[middle].first > number)
			low = middle + 1;
		else
			high = middle;
	}
	return low < ranges->count && number <= ranges->items[low].last;
}
