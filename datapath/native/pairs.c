/* SPDX-License-Identifier: Apache-2.0 */
#include "pairs.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"

#define FIRST_SIZE 16

static size_t address_bytes(uint8_t family)
{
	return family == 4 ? 8 : 32;
}

static bool is_pair(const struct zdp_pair *pair, uint8_t family, const uint8_t *addresses)
{
	return pair->family == family && !memcmp(pair->addresses, addresses, address_bytes(family));
}

/* Who chooses addresses can choose collisions: a full chain costs a look at 1024 places at most, and
 * only that peer's own packets. */
static uint32_t hash(uint8_t family, const uint8_t *addresses)
{
	uint64_t sum = family;

	for (size_t i = 0; i < address_bytes(family); i += 8) {
		uint64_t word;

		memcpy(&word, addresses + i, sizeof(word));
		sum = (sum ^ word) * 0x9e3779b97f4a7c15ULL;
		sum ^= sum >> 29;
	}
	return (uint32_t)(sum ^ sum >> 32);
}

/* The place of the pair, or the empty one where it belongs. */
static struct zdp_pair *find(const struct zdp_pairs *pairs, uint8_t family,
			     const uint8_t *addresses)
{
	uint32_t at = hash(family, addresses);

	for (;; at++) {
		struct zdp_pair *place = &pairs->places[at & (pairs->size - 1)];

		if (!place->family || is_pair(place, family, addresses))
			return place;
	}
}

bool zdp_pairs_has(struct zdp_pairs *pairs, uint8_t family, const uint8_t *addresses)
{
	const struct zdp_pair *place;

	if (is_pair(&pairs->last, family, addresses))
		return true;
	if (!pairs->places)
		return false;
	place = find(pairs, family, addresses);
	if (!place->family)
		return false;
	pairs->last = *place;
	return true;
}

static bool resize(struct zdp_pairs *pairs, uint32_t size)
{
	struct zdp_pairs fresh = {
		.places = calloc(size, sizeof(*fresh.places)), .size = size, .used = pairs->used
	};

	if (!fresh.places)
		return false;
	for (uint32_t i = 0; i < pairs->size; i++) {
		const struct zdp_pair *pair = &pairs->places[i];

		if (pair->family)
			*find(&fresh, pair->family, pair->addresses) = *pair;
	}
	free(pairs->places);
	pairs->places = fresh.places;
	pairs->size = size;
	return true;
}

bool zdp_pairs_add(struct zdp_pairs *pairs, uint8_t family, const uint8_t *addresses)
{
	struct zdp_pair *place;

	if (pairs->used >= ZDP_PAIRS_MAX)
		zdp_pairs_clear(pairs);
	/* Never more than half full: chains stay short. */
	if (pairs->used * 2 >= pairs->size &&
	    !resize(pairs, pairs->size ? pairs->size * 2 : FIRST_SIZE))
		return false;
	place = find(pairs, family, addresses);
	if (!place->family) {
		place->family = family;
		memcpy(place->addresses, addresses, address_bytes(family));
		pairs->used++;
	}
	return true;
}

void zdp_pairs_clear(struct zdp_pairs *pairs)
{
	free(pairs->places);
	memset(pairs, 0, sizeof(*pairs));
}

bool zdp_pairs_pass(struct zdp_pairs *pairs, const uint8_t *packet, size_t bytes)
{
	if (bytes < 20)
		return false;
	if (packet[0] == 0x45)
		return zdp_load16(packet + 2) == bytes && zdp_pairs_has(pairs, 4, packet + 12);
	return packet[0] >> 4 == 6 && bytes >= 40 &&
	       (size_t)zdp_load16(packet + 4) + 40 == bytes && zdp_pairs_has(pairs, 6, packet + 8);
}
