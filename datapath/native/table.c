/* SPDX-License-Identifier: Apache-2.0 */
#include "table.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_SIZE 16

static uint32_t hash(const uint8_t *key, size_t length)
{
	uint64_t sum = length;

	for (size_t i = 0; i < length; i += 4) {
		uint32_t word = 0;

		memcpy(&word, key + i, length - i < 4 ? length - i : 4);
		sum = (sum ^ word) * 0x9e3779b97f4a7c15ULL;
		sum ^= sum >> 32;
	}
	return (uint32_t)(sum ^ sum >> 32);
}

/* The place of the key, or the empty one where it belongs. */
static uint32_t find(const struct zdp_table *table, const uint8_t *key, size_t length)
{
	uint32_t at = hash(key, length) & (table->size - 1);

	for (;; at = (at + 1) & (table->size - 1)) {
		const struct zdp_table_entry *place = &table->places[at];

		if (!place->value || (place->key.length == length &&
				      !memcmp(place->key.bytes, key, length)))
			return at;
	}
}

void *zdp_table_find(const struct zdp_table *table, const uint8_t *key, size_t length)
{
	return table->places ? table->places[find(table, key, length)].value : NULL;
}

static bool resize(struct zdp_table *table, uint32_t size)
{
	struct zdp_table fresh = {
		.places = calloc(size, sizeof(*fresh.places)), .size = size, .used = table->used
	};

	if (!fresh.places)
		return false;
	for (uint32_t i = 0; i < table->size; i++) {
		const struct zdp_table_entry *entry = &table->places[i];

		if (entry->value)
			fresh.places[find(&fresh, entry->key.bytes, entry->key.length)] = *entry;
	}
	free(table->places);
	*table = fresh;
	return true;
}

bool zdp_table_put(struct zdp_table *table, const uint8_t *key, size_t length, void *value)
{
	struct zdp_table_entry *place;

	if (!length || length > ZDP_TABLE_KEY_BYTES)
		return false;
	if (table->used * 2 >= table->size &&
	    !resize(table, table->size ? table->size * 2 : FIRST_SIZE))
		return false;
	place = &table->places[find(table, key, length)];
	if (!place->value) {
		memcpy(place->key.bytes, key, length);
		place->key.length = (uint8_t)length;
		table->used++;
	}
	place->value = value;
	return true;
}

/* Empties a place, and moves up what only a full place had pushed further. */
static void empty(struct zdp_table *table, uint32_t at)
{
	const uint32_t mask = table->size - 1;
	uint32_t next = at;

	for (;;) {
		const struct zdp_table_entry *entry;
		uint32_t home;

		next = (next + 1) & mask;
		entry = &table->places[next];
		if (!entry->value)
			break;
		home = hash(entry->key.bytes, entry->key.length) & mask;
		if (((next - home) & mask) >= ((next - at) & mask)) {
			table->places[at] = *entry;
			at = next;
		}
	}
	table->places[at].value = NULL;
	table->used--;
}

bool zdp_table_remove(struct zdp_table *table, const uint8_t *key, size_t length,
		      const void *value)
{
	uint32_t at;

	if (!table->places || zdp_table_find(table, key, length) != value || !value)
		return false;
	at = find(table, key, length);
	empty(table, at);
	return true;
}

void zdp_table_remove_value(struct zdp_table *table, const void *value)
{
	for (uint32_t i = 0; i < table->size;) {
		if (table->places[i].value == value)
			empty(table, i); /* something else may be here now */
		else
			i++;
	}
}

void zdp_table_free(struct zdp_table *table)
{
	free(table->places);
	memset(table, 0, sizeof(*table));
}
