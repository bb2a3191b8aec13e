/* SPDX-License-Identifier: Apache-2.0 */
#include "offload_checksum.h"

#include <stdbool.h>

/* Vectors of GCC and Clang: two SSE registers where there is nothing better. */
typedef uint64_t lanes __attribute__((vector_size(32)));

/* Adds 32-bit words in 64-bit lanes. Instead of masking the low halves out, whole lanes are added
 * modulo 2^64 next to their high halves: total = low + 2^32 high, so low = total - 2^32 high. */
static inline __attribute__((always_inline)) uint64_t sum_bytes(uint8_t *out, const uint8_t *at,
								 size_t bytes, bool copy)
{
	lanes total[2] = { { 0 }, { 0 } }, high[2] = { { 0 }, { 0 } };
	uint64_t sum = 0, word;
	size_t i = 0;

	for (; i + 64 <= bytes; i += 64)
		for (int half = 0; half < 2; half++) {
			lanes value;

			memcpy(&value, at + i + 32 * half, 32);
			if (copy)
				memcpy(out + i + 32 * half, &value, 32);
			total[half] += value;
			high[half] += value >> 32;
		}
	total[0] += total[1];
	high[0] += high[1];
	total[0] -= high[0] << 32;
	for (int lane = 0; lane < 4; lane++)
		sum += total[0][lane] + high[0][lane];
	for (; i + 8 <= bytes; i += 8) {
		memcpy(&word, at + i, 8);
		if (copy)
			memcpy(out + i, &word, 8);
		sum += (word & 0xffffffff) + (word >> 32);
	}
	if (bytes & 4) {
		uint32_t half;

		memcpy(&half, at + i, 4);
		if (copy)
			memcpy(out + i, &half, 4);
		sum += half;
		i += 4;
	}
	if (bytes & 2) {
		uint16_t quarter;

		memcpy(&quarter, at + i, 2);
		if (copy)
			memcpy(out + i, &quarter, 2);
		sum += quarter;
		i += 2;
	}
	if (bytes & 1) {
		if (copy)
			out[i] = at[i];
		sum += htons((uint16_t)(at[i] << 8));
	}
	return sum;
}

/* Compiled twice and chosen at run time. Not with target_clones: that needs glibc, and Clang 14 gets
 * it wrong across files. */
#ifdef __x86_64__
__attribute__((target("avx2"))) static uint64_t sum_avx2(const uint8_t *at, size_t bytes)
{
	return sum_bytes(NULL, at, bytes, false);
}

__attribute__((target("avx2"))) static uint64_t copy_sum_avx2(uint8_t *out, const uint8_t *at,
							       size_t bytes)
{
	return sum_bytes(out, at, bytes, true);
}
#endif

uint64_t zdp_sum(const uint8_t *at, size_t bytes)
{
#ifdef __x86_64__
	if (__builtin_cpu_supports("avx2"))
		return sum_avx2(at, bytes);
#endif
	return sum_bytes(NULL, at, bytes, false);
}

uint64_t zdp_copy_sum(uint8_t *out, const uint8_t *at, size_t bytes)
{
#ifdef __x86_64__
	if (__builtin_cpu_supports("avx2"))
		return copy_sum_avx2(out, at, bytes);
#endif
	return sum_bytes(out, at, bytes, true);
}
