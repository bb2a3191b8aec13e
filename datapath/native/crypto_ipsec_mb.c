/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto_ipsec_mb.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <dlfcn.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#include "crypto.h"

/* The major version is in the name: another one has another ABI. */
#define LIBRARY "libIPSec_MB.so.1"
#define MAJOR_VERSION 1

/* VAES and VPCLMULQDQ: not every compiler's __builtin_cpu_supports knows them. */
static bool has_vector_aes(void)
{
	unsigned eax, ebx, ecx, edx;

	return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ecx & bit_VAES) &&
	       (ecx & bit_VPCLMULQDQ);
}

/* Best first. */
static const char *instruction_set(void)
{
	__builtin_cpu_init();
	if (!__builtin_cpu_supports("aes") || !__builtin_cpu_supports("pclmul"))
		return NULL;
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
	    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
	    __builtin_cpu_supports("bmi2") && has_vector_aes())
		return "vaes_avx512";
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"))
		return "avx_gen4";
	if (__builtin_cpu_supports("avx"))
		return "avx_gen2";
	return __builtin_cpu_supports("sse4.2") ? "sse" : NULL;
}

static void *function(void *library, const char *verb, int key_bits, const char *set)
{
	char name[64];

	snprintf(name, sizeof(name), "aes_gcm_%s_%d_%s", verb, key_bits, set);
	return dlsym(library, name);
}

static bool load_functions(struct zdp_ipsec_mb *loaded, void *library, const char *set)
{
	for (int i = 0; i < 2; i++) {
		struct zdp_ipsec_mb_gcm *gcm = &loaded->gcm[i];
		int key_bits = i ? 256 : 128;

		gcm->expand = (zdp_ipsec_mb_expand_fn)function(library, "pre", key_bits, set);
		gcm->seal = (zdp_ipsec_mb_crypt_fn)function(library, "enc", key_bits, set);
		gcm->open = (zdp_ipsec_mb_crypt_fn)function(library, "dec", key_bits, set);
		if (!gcm->expand || !gcm->seal || !gcm->open)
			return false;
	}
	return true;
}

static bool load_library(struct zdp_ipsec_mb *loaded)
{
	const char *set = instruction_set();
	unsigned (*version)(void);
	const char *(*version_text)(void);
	void *library = set ? dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL) : NULL;

	if (!library)
		return false;
	version = (unsigned (*)(void))dlsym(library, "imb_get_version");
	version_text = (const char *(*)(void))dlsym(library, "imb_get_version_str");
	if (version && version_text && version() >> 16 == MAJOR_VERSION &&
	    load_functions(loaded, library, set)) {
		snprintf(loaded->version, sizeof(loaded->version), "%s", version_text());
		return true;
	}
	dlclose(library);
	return false;
}

/* The self-test: every branch of the library's is reached by some length of text. */

#define TEST_TEXT_BYTES 2100
#define BEHIND_BYTES 4096
#define BEHIND_VALUE 0xa5

struct test_packet {
	uint8_t key[32], iv[ZDP_IV_BYTES], header[40];
	size_t header_bytes, text_bytes;
	uint8_t text[TEST_TEXT_BYTES];
};

/* The structures, with room behind them that must stay as it was. */
struct test_memory {
	alignas(64) uint8_t key[ZDP_IPSEC_MB_KEY_BYTES + BEHIND_BYTES];
	alignas(64) uint8_t context[ZDP_IPSEC_MB_CONTEXT_BYTES + BEHIND_BYTES];
	uint8_t out[TEST_TEXT_BYTES + BEHIND_BYTES];
};

static void fill(uint8_t *at, size_t bytes, uint32_t *state)
{
	for (size_t i = 0; i < bytes; i++) {
		*state = *state * 1664525U + 1013904223U;
		at[i] = (uint8_t)(*state >> 24);
	}
}

static bool untouched(const uint8_t *at, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		if (at[i] != BEHIND_VALUE)
			return false;
	return true;
}

static bool libcrypto_seal(const struct test_packet *packet, int key_bits, uint8_t *out,
			   uint8_t *tag)
{
	const EVP_CIPHER *cipher = key_bits == 128 ? EVP_aes_128_gcm() : EVP_aes_256_gcm();
	EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
	int bytes = 0;
	bool good = context &&
		EVP_EncryptInit_ex(context, cipher, NULL, packet->key, packet->iv) &&
		EVP_EncryptUpdate(context, NULL, &bytes, packet->header,
				  (int)packet->header_bytes) &&
		EVP_EncryptUpdate(context, out, &bytes, packet->text, (int)packet->text_bytes) &&
		EVP_EncryptFinal_ex(context, out + bytes, &bytes) &&
		EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, ZDP_TAG_BYTES, tag);

	EVP_CIPHER_CTX_free(context);
	return good;
}

static bool same_as_libcrypto(const struct zdp_ipsec_mb_gcm *gcm, int key_bits,
			      const struct test_packet *packet, struct test_memory *memory)
{
	uint8_t expected[TEST_TEXT_BYTES + ZDP_TAG_BYTES], tag[ZDP_TAG_BYTES];
	uint8_t expected_tag[ZDP_TAG_BYTES];

	if (!libcrypto_seal(packet, key_bits, expected, expected_tag))
		return false;
	memset(memory, BEHIND_VALUE, sizeof(*memory));
	gcm->expand(packet->key, memory->key);
	gcm->seal(memory->key, memory->context, memory->out, packet->text, packet->text_bytes,
		  packet->iv, packet->header, packet->header_bytes, tag, ZDP_TAG_BYTES);
	if (memcmp(memory->out, expected, packet->text_bytes) ||
	    memcmp(tag, expected_tag, ZDP_TAG_BYTES))
		return false;
	gcm->open(memory->key, memory->context, memory->out, expected, packet->text_bytes,
		  packet->iv, packet->header, packet->header_bytes, tag, ZDP_TAG_BYTES);
	return !memcmp(memory->out, packet->text, packet->text_bytes) &&
	       !memcmp(tag, expected_tag, ZDP_TAG_BYTES) &&
	       untouched(memory->key + ZDP_IPSEC_MB_KEY_BYTES, BEHIND_BYTES) &&
	       untouched(memory->context + ZDP_IPSEC_MB_CONTEXT_BYTES, BEHIND_BYTES) &&
	       untouched(memory->out + packet->text_bytes,
			 sizeof(memory->out) - packet->text_bytes);
}

static bool self_test(const struct zdp_ipsec_mb *loaded)
{
	static struct test_memory memory; /* too large for a stack */
	static struct test_packet packet;
	uint32_t state = 1;
	bool good = true;

	for (size_t bytes = 1; good && bytes <= TEST_TEXT_BYTES; bytes += bytes < 300 ? 1 : 89) {
		fill((uint8_t *)&packet, sizeof(packet), &state);
		packet.text_bytes = bytes;
		packet.header_bytes = bytes % (sizeof(packet.header) + 1);
		for (int i = 0; good && i < 2; i++)
			good = same_as_libcrypto(&loaded->gcm[i], i ? 256 : 128, &packet, &memory);
	}
	return good;
}

const struct zdp_ipsec_mb *zdp_ipsec_mb_load(void)
{
	static struct zdp_ipsec_mb loaded;
	static bool tried, good;

	if (!tried) {
		tried = true;
		good = load_library(&loaded) && self_test(&loaded);
	}
	return good ? &loaded : NULL;
}

#else

const struct zdp_ipsec_mb *zdp_ipsec_mb_load(void)
{
	return NULL;
}

#endif
