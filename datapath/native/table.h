/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions by connection ID and by address. The keys are ours to choose: no attacker's. */
#ifndef ZDP_TABLE_H
#define ZDP_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ZDP_TABLE_KEY_BYTES 20

struct zdp_table_key {
	uint8_t bytes[ZDP_TABLE_KEY_BYTES];
	uint8_t length; /* 1 to 20 */
};

struct zdp_table_entry {
	struct zdp_table_key key;
	void *value; /* NULL: an empty place */
};

struct zdp_table {
	struct zdp_table_entry *places; /* open addressing, at most half full */
	uint32_t size, used;
};

void *zdp_table_find(const struct zdp_table *table, const uint8_t *key, size_t length);
/* Replaces what is there. False: no memory, or no such length. */
bool zdp_table_put(struct zdp_table *table, const uint8_t *key, size_t length, void *value);
/* Only if it is `value`'s; true when it was. */
bool zdp_table_remove(struct zdp_table *table, const uint8_t *key, size_t length,
		      const void *value);
void zdp_table_remove_value(struct zdp_table *table, const void *value);
void zdp_table_free(struct zdp_table *table);

#endif
