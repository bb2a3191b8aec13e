/* SPDX-License-Identifier: Apache-2.0 */
/* The Internet checksum (RFC 1071), for the TUN's offloads.
 *
 * Sums are of 16-bit words as they lie in memory: in this machine's byte order, which a ones'
 * complement sum does not mind as long as the result is stored the same way. A sum has 64 bits
 * and is folded at the end; the sums of a few packets may be added before it overflows. */
#ifndef ZDP_OFFLOAD_CHECKSUM_H
#define ZDP_OFFLOAD_CHECKSUM_H

#include <arpa/inet.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The sum of `bytes` (at most 2^31); an odd last byte is followed by a zero. */
uint64_t zdp_sum(const uint8_t *at, size_t bytes);
/* The same, and copies them to `out`, which does not overlap. */
uint64_t zdp_copy_sum(uint8_t *out, const uint8_t *at, size_t bytes);

static inline uint64_t zdp_sum_word(const uint8_t *at)
{
	uint16_t word;

	memcpy(&word, at, sizeof(word));
	return word;
}

static inline uint64_t zdp_sum_two_words(const uint8_t *at)
{
	uint32_t words;

	memcpy(&words, at, sizeof(words));
	return words;
}

static inline uint64_t zdp_sum_ipv4_header(const uint8_t *at) /* without options */
{
	return zdp_sum_two_words(at) + zdp_sum_two_words(at + 4) + zdp_sum_two_words(at + 8) +
	       zdp_sum_two_words(at + 12) + zdp_sum_two_words(at + 16);
}

static inline uint16_t zdp_fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)((sum & 0xffff) + (sum >> 16));
}

/* The sum of an IPv4 or IPv6 pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1) but for
 * the addresses, which stand together in both headers. */
static inline uint64_t zdp_pseudo_sum(uint8_t protocol, size_t upper_bytes)
{
	return (uint64_t)htons(protocol) + htons((uint16_t)upper_bytes);
}

static inline void zdp_store_checksum(uint8_t *at, uint16_t checksum)
{
	memcpy(at, &checksum, sizeof(checksum));
}

#endif
