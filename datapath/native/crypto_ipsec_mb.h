/* SPDX-License-Identifier: Apache-2.0 */
/* AES-GCM by intel-ipsec-mb, loaded at run time: part of crypto.c.
 *
 * Nothing of the library's headers is needed: its functions for one instruction set are called by
 * name, and its structures are bytes to us, larger than it fills (which is tried before use). */
#ifndef ZDP_CRYPTO_IPSEC_MB_H
#define ZDP_CRYPTO_IPSEC_MB_H

#include <stdalign.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ZDP_IPSEC_MB_KEY_BYTES 1024
#define ZDP_IPSEC_MB_CONTEXT_BYTES 256

/* An expanded key, and where a packet is worked on: both are secret. */
struct zdp_ipsec_mb_key {
	alignas(64) uint8_t key[ZDP_IPSEC_MB_KEY_BYTES];
	alignas(64) uint8_t context[ZDP_IPSEC_MB_CONTEXT_BYTES];
};

typedef void (*zdp_ipsec_mb_expand_fn)(const void *key, void *expanded);
typedef void (*zdp_ipsec_mb_crypt_fn)(const void *expanded, void *context, uint8_t *out,
				      const uint8_t *in, uint64_t bytes, const uint8_t *iv,
				      const uint8_t *header, uint64_t header_bytes, uint8_t *tag,
				      uint64_t tag_bytes);

/* The functions for one key length. */
struct zdp_ipsec_mb_gcm {
	zdp_ipsec_mb_expand_fn expand;
	zdp_ipsec_mb_crypt_fn seal, open;
};

struct zdp_ipsec_mb {
	char version[32]; /* "1.3.0" */
	struct zdp_ipsec_mb_gcm gcm[2]; /* AES-128, AES-256 */
};

/* Loads the library, picks its functions for this processor, and compares them with libcrypto's.
 * NULL when anything of that is not as it should be. Does so once; later calls return the same. */
const struct zdp_ipsec_mb *zdp_ipsec_mb_load(void);

#endif
