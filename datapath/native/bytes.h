/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers in packets: big-endian loads and stores, and QUIC's variable-length integers
 * (RFC 9000 section 16). Nothing here checks bounds but what says so. */
#ifndef ZDP_BYTES_H
#define ZDP_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ZDP_VARINT_MAX ((1ULL << 62) - 1)

static inline uint16_t zdp_load16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static inline uint32_t zdp_load32(const uint8_t *at)
{
	return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static inline uint64_t zdp_load64(const uint8_t *at)
{
	return (uint64_t)zdp_load32(at) << 32 | zdp_load32(at + 4);
}

static inline void zdp_store16(uint8_t *at, uint16_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

static inline void zdp_store32(uint8_t *at, uint32_t value)
{
	zdp_store16(at, (uint16_t)(value >> 16));
	zdp_store16(at + 2, (uint16_t)value);
}

static inline void zdp_store64(uint8_t *at, uint64_t value)
{
	zdp_store32(at, (uint32_t)(value >> 32));
	zdp_store32(at + 4, (uint32_t)value);
}

/* Reads a varint from [at, end); the number of bytes read, or 0 when it is cut off. */
static inline size_t zdp_load_varint(const uint8_t *at, const uint8_t *end, uint64_t *value)
{
	size_t length;
	uint64_t number;

	if (at >= end)
		return 0;
	length = (size_t)1 << (at[0] >> 6);
	if ((size_t)(end - at) < length)
		return 0;
	number = at[0] & 0x3f;
	for (size_t i = 1; i < length; i++)
		number = number << 8 | at[i];
	*value = number;
	return length;
}

static inline size_t zdp_varint_bytes(uint64_t value)
{
	return value < 1 << 6 ? 1 : value < 1 << 14 ? 2 : value < 1 << 30 ? 4 : 8;
}

/* Writes the shortest encoding and returns its length; room for it is the caller's business. */
static inline size_t zdp_store_varint(uint8_t *at, uint64_t value)
{
	switch (zdp_varint_bytes(value)) {
	case 1:
		at[0] = (uint8_t)value;
		return 1;
	case 2:
		zdp_store16(at, (uint16_t)(0x4000 | value));
		return 2;
	case 4:
		zdp_store32(at, (uint32_t)(0x80000000U | value));
		return 4;
	default:
		zdp_store64(at, 0xc000000000000000ULL | value);
		return 8;
	}
}

#endif
