/* SPDX-License-Identifier: Apache-2.0 */
#include "networks.h"

#include <string.h>

struct key {
	uint8_t bytes[ZDP_TABLE_KEY_BYTES];
	size_t length;
};

_Static_assert(ZDP_TABLE_KEY_BYTES > 16, "an address and its prefix length are one key");

static size_t family_of(size_t bytes)
{
	return bytes == 16;
}

static bool is_prefix(size_t bytes, unsigned int prefix_bits)
{
	return (bytes == 4 || bytes == 16) && prefix_bits <= bytes * 8;
}

static struct key key_of(const uint8_t *address, size_t bytes, unsigned int prefix_bits)
{
	const size_t whole = prefix_bits / 8;
	struct key key = { .length = bytes + 1 };

	memcpy(key.bytes, address, whole);
	if (prefix_bits % 8)
		key.bytes[whole] = address[whole] & (uint8_t)(0xff00U >> prefix_bits % 8);
	key.bytes[bytes] = (uint8_t)prefix_bits;
	return key;
}

void *zdp_networks_find(const struct zdp_networks *networks, const uint8_t *address, size_t bytes)
{
	const size_t family = family_of(bytes);

	for (size_t i = 0; i < networks->families[family].count; i++) {
		const struct key key =
			key_of(address, bytes, networks->families[family].lengths[i]);
		void *value = zdp_table_find(&networks->table, key.bytes, key.length);

		if (value)
			return value;
	}
	return NULL;
}

/* After a network of a length came or went: which lengths there are. */
static void list_lengths(struct zdp_networks *networks, size_t family)
{
	uint8_t count = 0;

	for (int bits = ZDP_PREFIX_LENGTHS - 1; bits >= 0; bits--)
		if (networks->families[family].networks[bits])
			networks->families[family].lengths[count++] = (uint8_t)bits;
	networks->families[family].count = count;
}

bool zdp_networks_put(struct zdp_networks *networks, const uint8_t *address, size_t bytes,
		      unsigned int prefix_bits, void *value)
{
	const size_t family = family_of(bytes);
	struct key key;
	bool is_new;

	if (!is_prefix(bytes, prefix_bits))
		return false;
	key = key_of(address, bytes, prefix_bits);
	is_new = !zdp_table_find(&networks->table, key.bytes, key.length);
	if ((is_new && networks->table.used >= ZDP_NETWORKS_MAX) ||
	    !zdp_table_put(&networks->table, key.bytes, key.length, value))
		return false;
	if (is_new && !networks->families[family].networks[prefix_bits]++)
		list_lengths(networks, family);
	return true;
}

bool zdp_networks_remove(struct zdp_networks *networks, const uint8_t *address, size_t bytes,
			 unsigned int prefix_bits, const void *value)
{
	const size_t family = family_of(bytes);
	struct key key;

	if (!is_prefix(bytes, prefix_bits))
		return false;
	key = key_of(address, bytes, prefix_bits);
	if (!zdp_table_remove(&networks->table, key.bytes, key.length, value))
		return false;
	if (!--networks->families[family].networks[prefix_bits])
		list_lengths(networks, family);
	return true;
}

void zdp_networks_remove_value(struct zdp_networks *networks, const void *value)
{
	for (uint32_t i = 0; i < networks->table.size;) {
		const struct zdp_table_entry entry = networks->table.places[i];

		if (entry.value == value && value) /* something else may be here then */
			zdp_networks_remove(networks, entry.key.bytes, entry.key.length - 1U,
					    entry.key.bytes[entry.key.length - 1], value);
		else
			i++;
	}
}

void zdp_networks_free(struct zdp_networks *networks)
{
	zdp_table_free(&networks->table);
	memset(networks, 0, sizeof(*networks));
}
