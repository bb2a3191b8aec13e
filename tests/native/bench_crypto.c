/* SPDX-License-Identifier: Apache-2.0 */
/* Nanoseconds of processor time for each packet: the least of many short runs. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "crypto.h"
#include "packet.h"

#define TEXT_BYTES 1300
#define PACKETS_PER_RUN 640
#define RUNS 300

static uint8_t text[ZDP_OPEN_BATCH][TEXT_BYTES];
static uint8_t sealed[ZDP_OPEN_BATCH][TEXT_BYTES + ZDP_TAG_BYTES];
static uint8_t opened[ZDP_OPEN_BATCH][TEXT_BYTES];
static uint8_t samples[ZDP_OPEN_BATCH * ZDP_SAMPLE_BYTES];
static const uint8_t header[25];

static double now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

enum work { SEAL, OPEN, MASK };

static double least_ns(struct zdp_key *key, enum work work, size_t batch)
{
	struct zdp_aead_job jobs[ZDP_OPEN_BATCH];
	double least = 1e18;

	for (size_t i = 0; i < batch; i++)
		jobs[i] = (struct zdp_aead_job){
			.packet_number = i,
			.header = header,
			.header_bytes = sizeof(header),
			.text = work == SEAL ? text[i] : sealed[i],
			.text_bytes = TEXT_BYTES + (work == SEAL ? 0 : ZDP_TAG_BYTES),
			.out = work == SEAL ? sealed[i] : opened[i],
		};
	for (int run = 0; run < RUNS; run++) {
		double begin = now_ns(), ns;

		for (size_t done = 0; done < PACKETS_PER_RUN; done += batch)
			if (work == SEAL)
				zdp_seal_batch(key, jobs, batch);
			else if (work == OPEN)
				zdp_open_batch(key, jobs, batch);
			else
				zdp_masks(key, samples, batch, samples);
		ns = (now_ns() - begin) / PACKETS_PER_RUN;
		least = ns < least ? ns : least;
		if (work == OPEN && !jobs[batch - 1].ok)
			abort();
	}
	return least;
}

int main(void)
{
	static const char *backends[] = { "openssl", "ipsec-mb" };
	static const char *ciphers[] = { "AES-128-GCM", "AES-256-GCM", "ChaCha20-Poly1305" };
	static const size_t batches[] = { 1, 16, 64 };
	static const uint8_t secret[32] = { 1 };

	for (size_t i = 0; i < 2; i++) {
		if (!zdp_crypto_choose(backends[i]))
			continue;
		for (int cipher = 0; cipher < 3; cipher++)
			for (size_t j = 0; j < 3; j++) {
				struct zdp_key *key = zdp_key_new((enum zdp_cipher)cipher, secret,
								  secret, secret);

				if (!key)
					abort();
				printf("%-15s %-18s batch %2zu: ", zdp_crypto_backend(),
				       ciphers[cipher], batches[j]);
				printf("seal %5.0f ", least_ns(key, SEAL, batches[j]));
				printf("open %5.0f ", least_ns(key, OPEN, batches[j]));
				printf("mask %4.0f ns\n", least_ns(key, MASK, batches[j]));
				zdp_key_free(key);
			}
	}
	return 0;
}
