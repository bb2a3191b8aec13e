/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "crypto_ipsec_mb.h"

struct zdp_key {
	enum zdp_cipher cipher;
	uint8_t iv[ZDP_IV_BYTES];
	/* A context keeps its key; a packet only changes the nonce. Exactly one of these two. */
	EVP_CIPHER_CTX *aead;
	struct zdp_ipsec_mb_key *fast;
	const struct zdp_ipsec_mb_gcm *gcm; /* the functions of `fast` */
	EVP_CIPHER_CTX *masks;
};

/* What it takes to make a key of a cipher. Fetched once: a fetch costs more than a packet. */
struct suite {
	const char *aead_name, *mask_name;
	size_t key_bytes;
	uint64_t seal_limit, forged_limit;
	EVP_CIPHER *aead, *mask;
};

/* RFC 9001 section 6.6. ChaCha20-Poly1305 has no limit for sealing but that of packet numbers. */
static struct suite suites[] = {
	[ZDP_AES_128_GCM] = { "AES-128-GCM", "AES-128-ECB", 16, 1ULL << 23, 1ULL << 52,
			      NULL, NULL },
	[ZDP_AES_256_GCM] = { "AES-256-GCM", "AES-256-ECB", 32, 1ULL << 23, 1ULL << 52,
			      NULL, NULL },
	[ZDP_CHACHA20_POLY1305] = { "ChaCha20-Poly1305", "ChaCha20", 32, 1ULL << 62, 1ULL << 36,
				    NULL, NULL },
};

#define SUITES (sizeof(suites) / sizeof(*suites))

static bool chosen_yet;
static const struct zdp_ipsec_mb *ipsec_mb; /* NULL: OpenSSL */

size_t zdp_cipher_key_bytes(enum zdp_cipher cipher)
{
	return cipher < SUITES ? suites[cipher].key_bytes : 0;
}

uint64_t zdp_key_seal_limit(const struct zdp_key *key)
{
	return suites[key->cipher].seal_limit;
}

uint64_t zdp_key_forged_limit(const struct zdp_key *key)
{
	return suites[key->cipher].forged_limit;
}

bool zdp_crypto_choose(const char *name)
{
	bool automatic = !strcmp(name, "auto");
	const struct zdp_ipsec_mb *found = NULL;

	if (automatic || !strcmp(name, "ipsec-mb"))
		found = zdp_ipsec_mb_load();
	if (!found && !automatic && strcmp(name, "openssl"))
		return false;
	ipsec_mb = found;
	chosen_yet = true;
	return true;
}

static const struct zdp_ipsec_mb *chosen(void)
{
	if (!chosen_yet)
		zdp_crypto_choose("auto");
	return ipsec_mb;
}

const char *zdp_crypto_backend(void)
{
	static char name[64];

	if (chosen())
		snprintf(name, sizeof(name), "ipsec-mb %s", ipsec_mb->version);
	else
		snprintf(name, sizeof(name), "OpenSSL %s", OpenSSL_version(OPENSSL_VERSION_STRING));
	return name;
}

static bool fetch(struct suite *suite)
{
	if (!suite->aead)
		suite->aead = EVP_CIPHER_fetch(NULL, suite->aead_name, NULL);
	if (!suite->mask)
		suite->mask = EVP_CIPHER_fetch(NULL, suite->mask_name, NULL);
	return suite->aead && suite->mask;
}

static EVP_CIPHER_CTX *context_new(const EVP_CIPHER *cipher, const uint8_t *key)
{
	EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();

	/* Encrypting: for an AEAD a packet says otherwise; masks are always encrypted. */
	if (context && EVP_CipherInit_ex2(context, cipher, key, NULL, 1, NULL) &&
	    EVP_CIPHER_CTX_set_padding(context, 0))
		return context;
	EVP_CIPHER_CTX_free(context);
	return NULL;
}

static bool set_aead(struct zdp_key *made, const struct suite *suite, const uint8_t *key)
{
	if (made->cipher == ZDP_CHACHA20_POLY1305 || !chosen()) {
		made->aead = context_new(suite->aead, key);
		return made->aead != NULL;
	}
	made->fast = aligned_alloc(alignof(struct zdp_ipsec_mb_key), sizeof(*made->fast));
	if (!made->fast)
		return false;
	memset(made->fast, 0, sizeof(*made->fast));
	made->gcm = &ipsec_mb->gcm[made->cipher == ZDP_AES_256_GCM];
	made->gcm->expand(key, made->fast->key);
	return true;
}

struct zdp_key *zdp_key_new(enum zdp_cipher cipher, const uint8_t *key,
			    const uint8_t iv[ZDP_IV_BYTES], const uint8_t *header_key)
{
	struct suite *suite = cipher < SUITES ? &suites[cipher] : NULL;
	struct zdp_key *made = suite ? calloc(1, sizeof(*made)) : NULL;

	if (!made)
		return NULL;
	made->cipher = cipher;
	memcpy(made->iv, iv, ZDP_IV_BYTES);
	if (fetch(suite) && set_aead(made, suite, key)) {
		made->masks = context_new(suite->mask, header_key);
		if (made->masks)
			return made;
	}
	zdp_key_free(made);
	return NULL;
}

void zdp_key_free(struct zdp_key *key)
{
	if (!key)
		return;
	/* libcrypto wipes what its contexts hold. */
	EVP_CIPHER_CTX_free(key->aead);
	EVP_CIPHER_CTX_free(key->masks);
	if (key->fast)
		OPENSSL_cleanse(key->fast, sizeof(*key->fast));
	free(key->fast);
	OPENSSL_cleanse(key, sizeof(*key));
	free(key);
}

/* RFC 9001 section 5.3. */
static void nonce_of(const struct zdp_key *key, uint64_t packet_number, uint8_t *nonce)
{
	memcpy(nonce, key->iv, ZDP_IV_BYTES);
	zdp_store64(nonce + 4, zdp_load64(key->iv + 4) ^ packet_number);
}

/* Nonce and header. A context made for one direction serves the other: both of our AEADs have
 * one key schedule for both. */
static bool begin(EVP_CIPHER_CTX *context, const struct zdp_aead_job *job, const uint8_t *nonce,
		  int seal)
{
	int bytes;

	return EVP_CipherInit_ex2(context, NULL, NULL, nonce, seal, NULL) &&
	       EVP_CipherUpdate(context, NULL, &bytes, job->header, (int)job->header_bytes);
}

/* Faster than EVP_CIPHER_CTX_ctrl, which makes the same of its arguments. */
static OSSL_PARAM tag_param(uint8_t *tag)
{
	return OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, tag, ZDP_TAG_BYTES);
}

static bool libcrypto_seal(struct zdp_key *key, const struct zdp_aead_job *job,
			   const uint8_t *nonce)
{
	OSSL_PARAM tag[2] = { tag_param(job->out + job->text_bytes), OSSL_PARAM_construct_end() };
	int bytes = 0, last = 0;

	return begin(key->aead, job, nonce, 1) &&
	       EVP_CipherUpdate(key->aead, job->out, &bytes, job->text, (int)job->text_bytes) &&
	       EVP_CipherFinal_ex(key->aead, job->out + bytes, &last) &&
	       EVP_CIPHER_CTX_get_params(key->aead, tag);
}

static bool libcrypto_open(struct zdp_key *key, const struct zdp_aead_job *job,
			   const uint8_t *nonce, size_t text_bytes)
{
	/* libcrypto copies the tag, and does not write to it. */
	uint8_t *received = (uint8_t *)(uintptr_t)(job->text + text_bytes);
	OSSL_PARAM tag[2] = { tag_param(received), OSSL_PARAM_construct_end() };
	int bytes = 0, last = 0;

	return begin(key->aead, job, nonce, 0) &&
	       EVP_CipherUpdate(key->aead, job->out, &bytes, job->text, (int)text_bytes) &&
	       EVP_CIPHER_CTX_set_params(key->aead, tag) &&
	       EVP_CipherFinal_ex(key->aead, job->out + bytes, &last);
}

#ifdef ZDP_BENCH_NULL_CIPHER
/* What does the AEAD cost? Only in a build that the bench makes for itself, and there only where
 * the environment asks: packets that begin with a DATAGRAM frame are copied and get a tag of zeros.
 * Header protection stays, and so does the AEAD of all others: they may be for aioquic, or its. */
static bool null_seal(const struct zdp_aead_job *job)
{
	static int wanted = -1;

	if (wanted < 0)
		wanted = getenv("ZGATE_BENCH_NULL_CIPHER") != NULL;
	if (!wanted || (job->text[0] & 0xfe) != 0x30)
		return false;
	memcpy(job->out, job->text, job->text_bytes);
	memset(job->out + job->text_bytes, 0, ZDP_TAG_BYTES);
	return true;
}

static bool null_open(const struct zdp_aead_job *job, size_t text_bytes)
{
	static const uint8_t zeros[ZDP_TAG_BYTES];

	if (memcmp(job->text + text_bytes, zeros, ZDP_TAG_BYTES))
		return false;
	memcpy(job->out, job->text, text_bytes);
	return true;
}
#endif

static bool seal_one(struct zdp_key *key, const struct zdp_aead_job *job)
{
	uint8_t nonce[ZDP_IV_BYTES];

#ifdef ZDP_BENCH_NULL_CIPHER
	if (null_seal(job))
		return true;
#endif
	nonce_of(key, job->packet_number, nonce);
	if (!key->fast)
		return libcrypto_seal(key, job, nonce);
	key->gcm->seal(key->fast->key, key->fast->context, job->out, job->text, job->text_bytes,
		       nonce, job->header, job->header_bytes, job->out + job->text_bytes,
		       ZDP_TAG_BYTES);
	return true;
}

static bool open_one(struct zdp_key *key, const struct zdp_aead_job *job)
{
	uint8_t nonce[ZDP_IV_BYTES], tag[ZDP_TAG_BYTES];
	size_t text_bytes = job->text_bytes - ZDP_TAG_BYTES;

	if (job->text_bytes < ZDP_TAG_BYTES)
		return false;
#ifdef ZDP_BENCH_NULL_CIPHER
	if (null_open(job, text_bytes))
		return true;
#endif
	nonce_of(key, job->packet_number, nonce);
	if (!key->fast)
		return libcrypto_open(key, job, nonce, text_bytes);
	key->gcm->open(key->fast->key, key->fast->context, job->out, job->text, text_bytes, nonce,
		       job->header, job->header_bytes, tag, ZDP_TAG_BYTES);
	return !CRYPTO_memcmp(tag, job->text + text_bytes, ZDP_TAG_BYTES);
}

void zdp_seal_batch(struct zdp_key *key, struct zdp_aead_job *jobs, size_t count)
{
	for (size_t i = 0; i < count; i++)
		jobs[i].ok = seal_one(key, &jobs[i]);
}

void zdp_open_batch(struct zdp_key *key, struct zdp_aead_job *jobs, size_t count)
{
	for (size_t i = 0; i < count; i++)
		jobs[i].ok = open_one(key, &jobs[i]);
}

/* RFC 9001 section 5.4.3: the first bytes of the encrypted sample. */
static bool aes_masks(struct zdp_key *key, const uint8_t *samples, size_t count, uint8_t *masks)
{
	int bytes;

	return EVP_EncryptUpdate(key->masks, masks, &bytes, samples,
				 (int)(count * ZDP_SAMPLE_BYTES));
}

/* RFC 9001 section 5.4.4: the sample is counter and nonce, in libcrypto's order. */
static bool chacha20_masks(struct zdp_key *key, const uint8_t *samples, size_t count,
			   uint8_t *masks)
{
	static const uint8_t zeros[ZDP_MASK_BYTES];

	for (size_t i = 0; i < count; i++) {
		const uint8_t *sample = samples + i * ZDP_SAMPLE_BYTES;
		int bytes;

		if (!EVP_EncryptInit_ex2(key->masks, NULL, NULL, sample, NULL) ||
		    !EVP_EncryptUpdate(key->masks, masks + i * ZDP_SAMPLE_BYTES, &bytes, zeros,
				       sizeof(zeros)))
			return false;
	}
	return true;
}

bool zdp_masks(struct zdp_key *key, const uint8_t *samples, size_t count, uint8_t *masks)
{
	if (key->cipher == ZDP_CHACHA20_POLY1305)
		return chacha20_masks(key, samples, count, masks);
	return aes_masks(key, samples, count, masks);
}
