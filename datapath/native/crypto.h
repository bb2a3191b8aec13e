/* SPDX-License-Identifier: Apache-2.0 */
/* The AEAD and header protection of one direction (RFC 9001 sections 5.3 and 5.4).
 *
 * OpenSSL's libcrypto always; intel-ipsec-mb (loaded at run time) where it is there and faster.
 * Keys are wiped when they are freed. */
#ifndef ZDP_CRYPTO_H
#define ZDP_CRYPTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ZDP_TAG_BYTES 16
#define ZDP_IV_BYTES 12
#define ZDP_SAMPLE_BYTES 16
#define ZDP_MASK_BYTES 5

enum zdp_cipher {
	ZDP_AES_128_GCM,
	ZDP_AES_256_GCM,
	ZDP_CHACHA20_POLY1305,
};

/* One direction's keys: opaque, made once per key phase. */
struct zdp_key;

/* `key` and `header_key` have the cipher's key length (16, 32, 32). NULL when there is no
 * such cipher, or libcrypto refuses. After a key update only `key` and `iv` are new: the header
 * key stays (RFC 9001 section 6). */
struct zdp_key *zdp_key_new(enum zdp_cipher cipher, const uint8_t *key,
			    const uint8_t iv[ZDP_IV_BYTES], const uint8_t *header_key);
/* Wipes and frees; NULL is fine. */
void zdp_key_free(struct zdp_key *key);
/* 0: no such cipher. */
size_t zdp_cipher_key_bytes(enum zdp_cipher cipher);
/* RFC 9001 section 6.6: packets that may be sealed with a key, and packets that may fail to open
 * over all keys of a connection, before it must end. */
uint64_t zdp_key_seal_limit(const struct zdp_key *key);
uint64_t zdp_key_forged_limit(const struct zdp_key *key);

/* One packet of a batch. `out` does not overlap `text`; it has room for text_bytes + tag when
 * sealing, text_bytes - tag when opening. */
struct zdp_aead_job {
	uint64_t packet_number;
	const uint8_t *header; /* associated data: the unprotected header */
	size_t header_bytes;
	const uint8_t *text;
	size_t text_bytes;
	uint8_t *out;
	/* Opening: whether the tag was right. Sealing: false only when libcrypto failed. What is in
	 * `out` when not must not be used, and not be sent. */
	bool ok;
};

/* Both go over the whole batch, whichever packets fail. */
void zdp_seal_batch(struct zdp_key *key, struct zdp_aead_job *jobs, size_t count);
void zdp_open_batch(struct zdp_key *key, struct zdp_aead_job *jobs, size_t count);

/* Header protection masks of `count` samples, which lie ZDP_SAMPLE_BYTES apart; each mask is
 * ZDP_MASK_BYTES long and lies ZDP_SAMPLE_BYTES apart as well. `masks` may be `samples`. One call
 * for a batch. False: libcrypto failed; nothing of the batch can be used. */
bool zdp_masks(struct zdp_key *key, const uint8_t *samples, size_t count, uint8_t *masks);

/* "ipsec-mb 1.3.0" or "OpenSSL 3.0.x": what seals and opens AES-GCM, for status pages. */
const char *zdp_crypto_backend(void);
/* Chooses: "auto" (the default), "openssl", "ipsec-mb". False when that is not there. Affects
 * keys that are made later. */
bool zdp_crypto_choose(const char *name);

#endif
