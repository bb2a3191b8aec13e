/* SPDX-License-Identifier: Apache-2.0 */
#include "packet.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"

#define LONG_HEADER 0x80
#define FIXED_BIT 0x40
#define SPIN_BIT 0x20
#define RESERVED_BITS 0x18
#define PHASE_BIT 0x04
#define PHASE_SHIFT 2
#define NUMBER_LENGTH_BITS 0x03
/* What header protection covers of a short header's first byte (RFC 9001 section 5.4.1). */
#define PROTECTED_BITS 0x1f

#define MAX_NUMBER_BYTES 4
#define MAX_HEADER_BYTES (1 + ZDP_MAX_CID_BYTES + MAX_NUMBER_BYTES)
#define MAX_PACKET_NUMBER ZDP_VARINT_MAX
/* RFC 9000 section 17.1: four bytes can only tell numbers apart within half their range. */
#define MAX_UNACKED (1ULL << 31)

/* Replay window: bit n & (size - 1) is number n's. Until it has its full size, it holds every
 * number below `next`, so growing moves no bit. */

#define WORD_BITS 64
#define FIRST_SIZE WORD_BITS

void zdp_replay_free(struct zdp_replay_window *window)
{
	free(window->bits);
	*window = (struct zdp_replay_window){ 0 };
}

static uint64_t *word_of(const struct zdp_replay_window *window, uint64_t number)
{
	return &window->bits[(number & (window->size - 1)) / WORD_BITS];
}

bool zdp_replay_seen(const struct zdp_replay_window *window, uint64_t number)
{
	if (number >= window->next)
		return false;
	if (window->next - number > window->size)
		return true;
	return *word_of(window, number) >> (number % WORD_BITS) & 1;
}

static bool grow(struct zdp_replay_window *window, uint64_t number)
{
	uint32_t size = window->size ? window->size : FIRST_SIZE;
	uint64_t *bits;

	while (size <= number && size < ZDP_REPLAY_WINDOW_PACKETS)
		size *= 2;
	if (size == window->size)
		return true;
	bits = realloc(window->bits, size / 8);
	if (!bits)
		return false;
	memset(bits + window->size / WORD_BITS, 0, (size - window->size) / 8);
	window->bits = bits;
	window->size = size;
	return true;
}

/* Makes room for `number`, the largest now: its bit and those between were other numbers'. */
static void slide(struct zdp_replay_window *window, uint64_t number)
{
	uint64_t n = window->next;

	window->next = number + 1;
	if (number - n >= window->size) {
		memset(window->bits, 0, window->size / 8);
		return;
	}
	while (n <= number)
		if (n % WORD_BITS == 0 && number - n >= WORD_BITS - 1) {
			*word_of(window, n) = 0;
			n += WORD_BITS;
		} else {
			*word_of(window, n) &= ~(1ULL << (n % WORD_BITS));
			n++;
		}
}

bool zdp_replay_add(struct zdp_replay_window *window, uint64_t number)
{
	if (number >= window->size && !grow(window, number))
		return false;
	if (number >= window->next)
		slide(window, number);
	if (window->next - number <= window->size)
		*word_of(window, number) |= 1ULL << (number % WORD_BITS);
	return true;
}

/* Opening. */

void zdp_opener_set_key(struct zdp_opener *opener, struct zdp_key *key, uint8_t phase)
{
	zdp_key_free(opener->previous);
	opener->previous = opener->key;
	opener->key = key;
	opener->phase = phase;
	opener->phase_begin = UINT64_MAX;
	zdp_opener_set_next(opener, NULL);
}

void zdp_opener_set_next(struct zdp_opener *opener, struct zdp_key *next)
{
	zdp_key_free(opener->next);
	opener->next = next;
}

void zdp_opener_drop_previous(struct zdp_opener *opener)
{
	zdp_key_free(opener->previous);
	opener->previous = NULL;
}

void zdp_opener_free(struct zdp_opener *opener)
{
	zdp_key_free(opener->key);
	zdp_opener_drop_previous(opener);
	zdp_opener_set_next(opener, NULL);
	zdp_replay_free(&opener->window);
	*opener = (struct zdp_opener){ 0 };
}

/* RFC 9000 appendix A.3; `next` is one above the largest number received. */
static uint64_t decode_number(uint64_t next, uint32_t truncated, unsigned bits)
{
	uint64_t window = 1ULL << bits;
	uint64_t expected = next < MAX_PACKET_NUMBER ? next : MAX_PACKET_NUMBER;
	uint64_t candidate = (expected & ~(window - 1)) | truncated;

	if (candidate + window / 2 <= expected && candidate <= MAX_PACKET_NUMBER - window)
		return candidate + window;
	if (candidate > expected + window / 2 && candidate >= window)
		return candidate - window;
	return candidate;
}

/* A batch on its way: job i's packet has header i. */
struct opening {
	size_t count; /* packets that header protection was taken from */
	struct zdp_open_job *jobs[ZDP_OPEN_BATCH];
	struct zdp_aead_job aead[ZDP_OPEN_BATCH];
	uint8_t headers[ZDP_OPEN_BATCH][MAX_HEADER_BYTES];
	uint8_t masks[ZDP_OPEN_BATCH][ZDP_SAMPLE_BYTES];
};

static bool has_short_header(const struct zdp_opener *opener, const struct zdp_open_job *job)
{
	size_t sample_at = 1 + (size_t)opener->cid_bytes + MAX_NUMBER_BYTES;

	return job->packet_bytes >= sample_at + ZDP_SAMPLE_BYTES &&
	       (job->packet[0] & (LONG_HEADER | FIXED_BIT)) == FIXED_BIT;
}

static void take_samples(const struct zdp_opener *opener, struct opening *opening,
			 struct zdp_open_job *jobs, size_t count)
{
	size_t sample_at = 1 + (size_t)opener->cid_bytes + MAX_NUMBER_BYTES;

	opening->count = 0;
	for (size_t i = 0; i < count; i++) {
		struct zdp_open_job *job = &jobs[i];

		job->result = ZDP_FOREIGN;
		job->out_bytes = 0;
		job->number = 0;
		job->spin = false;
		if (!opener->key || opening->count == ZDP_OPEN_BATCH ||
		    !has_short_header(opener, job))
			continue;
		memcpy(opening->masks[opening->count], job->packet + sample_at, ZDP_SAMPLE_BYTES);
		opening->jobs[opening->count++] = job;
	}
}

/* Takes header protection off a copy of the header (RFC 9001 section 5.4.1). */
static void unprotect(const struct zdp_opener *opener, struct opening *opening, size_t i)
{
	size_t number_at = 1 + (size_t)opener->cid_bytes;
	struct zdp_open_job *job = opening->jobs[i];
	struct zdp_aead_job *aead = &opening->aead[i];
	const uint8_t *mask = opening->masks[i];
	uint8_t *header = opening->headers[i];
	uint32_t truncated = 0;
	size_t number_bytes;

	memcpy(header, job->packet, number_at);
	header[0] ^= mask[0] & PROTECTED_BITS;
	number_bytes = (size_t)(header[0] & NUMBER_LENGTH_BITS) + 1;
	for (size_t j = 0; j < number_bytes; j++) {
		header[number_at + j] = job->packet[number_at + j] ^ mask[1 + j];
		truncated = truncated << 8 | header[number_at + j];
	}
	job->spin = header[0] & SPIN_BIT;
	job->number = decode_number(opener->window.next, truncated, 8 * (unsigned)number_bytes);
	*aead = (struct zdp_aead_job){
		.packet_number = job->number,
		.header = header,
		.header_bytes = number_at + number_bytes,
		.text = job->packet + number_at + number_bytes,
		.text_bytes = job->packet_bytes - number_at - number_bytes,
		.out = job->out,
	};
}

static bool is_current_phase(const struct zdp_opener *opener, const uint8_t *header)
{
	return (header[0] & PHASE_BIT) >> PHASE_SHIFT == opener->phase;
}

/* The key of a packet whose phase bit is the other one (RFC 9001 section 6.5): numbers below the
 * current phase are the previous one's, those above are an update. */
static struct zdp_key *other_key(const struct zdp_opener *opener, uint64_t number)
{
	return opener->previous && number < opener->phase_begin ? opener->previous : opener->next;
}

/* One AEAD for each packet: those of the current phase together, a run at a time. */
static void decrypt(struct zdp_opener *opener, struct opening *opening)
{
	size_t i = 0;

	while (i < opening->count) {
		size_t begin = i;

		while (i < opening->count && is_current_phase(opener, opening->headers[i]))
			i++;
		zdp_open_batch(opener->key, &opening->aead[begin], i - begin);
		if (i < opening->count) {
			struct zdp_aead_job *aead = &opening->aead[i];
			struct zdp_key *key = other_key(opener, aead->packet_number);

			if (key)
				zdp_open_batch(key, aead, 1);
			i++;
		}
	}
}

/* What an authentic packet is, and what a packet is that no AEAD was spent on. What a forger could
 * tell apart by time if it were asked sooner is asked here, behind the AEAD: the reserved bits and
 * whether the number is known (RFC 9001 section 9.5). */
static enum zdp_opened judge(struct zdp_opener *opener, const struct opening *opening, size_t i)
{
	const uint8_t *header = opening->headers[i];
	uint64_t number = opening->aead[i].packet_number;
	bool current = is_current_phase(opener, header);
	struct zdp_key *key = current ? opener->key : other_key(opener, number);

	if (!key)
		return ZDP_FOREIGN;
	if (!opening->aead[i].ok) {
		opener->forged++;
		return ZDP_FORGED;
	}
	if ((header[0] & RESERVED_BITS) || (!current && key == opener->next))
		return ZDP_FOREIGN;
	if (zdp_replay_seen(&opener->window, number))
		return ZDP_DUPLICATE;
	return ZDP_OPENED;
}

static bool earlier_in_batch(const struct opening *opening, size_t i)
{
	for (size_t j = 0; j < i; j++)
		if (opening->jobs[j]->result == ZDP_OPENED &&
		    opening->jobs[j]->number == opening->jobs[i]->number)
			return true;
	return false;
}

static void answer(struct zdp_opener *opener, struct opening *opening)
{
	uint64_t above = 0; /* every number of this batch so far */

	for (size_t i = 0; i < opening->count; i++) {
		struct zdp_open_job *job = opening->jobs[i];
		enum zdp_opened result = judge(opener, opening, i);

		if (result == ZDP_OPENED && job->number < above && earlier_in_batch(opening, i))
			result = ZDP_DUPLICATE;
		job->result = result;
		if (result != ZDP_OPENED)
			continue;
		job->out_bytes = opening->aead[i].text_bytes - ZDP_TAG_BYTES;
		if (job->number >= above)
			above = job->number + 1;
	}
}

/* After the answers: they go by where the phase began when the AEADs were done. */
static void note_phase(struct zdp_opener *opener, const struct opening *opening)
{
	for (size_t i = 0; i < opening->count; i++)
		if (opening->jobs[i]->result == ZDP_OPENED &&
		    is_current_phase(opener, opening->headers[i]) &&
		    opening->jobs[i]->number < opener->phase_begin)
			opener->phase_begin = opening->jobs[i]->number;
}

void zdp_open_packets(struct zdp_opener *opener, struct zdp_open_job *jobs, size_t count)
{
	struct opening opening;

	take_samples(opener, &opening, jobs, count);
	if (!opening.count)
		return;
	if (!zdp_masks(opener->key, opening.masks[0], opening.count, opening.masks[0]))
		return;
	for (size_t i = 0; i < opening.count; i++)
		unprotect(opener, &opening, i);
	decrypt(opener, &opening);
	answer(opener, &opening);
	note_phase(opener, &opening);
}

/* Sealing. */

void zdp_sealer_set_key(struct zdp_sealer *sealer, struct zdp_key *key, uint8_t phase)
{
	zdp_key_free(sealer->key);
	sealer->key = key;
	sealer->phase = phase;
	sealer->sealed_with_key = 0;
}

void zdp_sealer_free(struct zdp_sealer *sealer)
{
	zdp_key_free(sealer->key);
	*sealer = (struct zdp_sealer){ .largest_acked = UINT64_MAX };
}

size_t zdp_sealer_room(const struct zdp_sealer *sealer)
{
	uint64_t least_unacked = sealer->largest_acked + 1; /* none yet: 0 */
	uint64_t room, left;

	if (!sealer->key || sealer->next_number > MAX_PACKET_NUMBER ||
	    sealer->sealed_with_key >= zdp_key_seal_limit(sealer->key) ||
	    sealer->next_number - least_unacked >= MAX_UNACKED)
		return 0;
	room = MAX_PACKET_NUMBER + 1 - sealer->next_number;
	left = zdp_key_seal_limit(sealer->key) - sealer->sealed_with_key;
	room = left < room ? left : room;
	left = MAX_UNACKED - (sealer->next_number - least_unacked);
	room = left < room ? left : room;
	return room < ZDP_OPEN_BATCH ? (size_t)room : ZDP_OPEN_BATCH;
}

static void write_header(struct zdp_sealer *sealer, struct zdp_seal_job *job)
{
	uint8_t *at = job->out;

	*at++ = (uint8_t)(FIXED_BIT | (sealer->spin ? SPIN_BIT : 0) | sealer->phase << PHASE_SHIFT |
			  (MAX_NUMBER_BYTES - 1));
	memcpy(at, sealer->cid, sealer->cid_bytes);
	zdp_store32(at + sealer->cid_bytes, (uint32_t)job->number);
}

static void encrypt(struct zdp_sealer *sealer, struct zdp_seal_job *jobs, size_t count)
{
	struct zdp_aead_job aead[ZDP_OPEN_BATCH];
	size_t header_bytes = 1 + (size_t)sealer->cid_bytes + MAX_NUMBER_BYTES;

	for (size_t i = 0; i < count; i++) {
		struct zdp_seal_job *job = &jobs[i];

		job->number = sealer->next_number++;
		write_header(sealer, job);
		aead[i] = (struct zdp_aead_job){
			.packet_number = job->number,
			.header = job->out,
			.header_bytes = header_bytes,
			.text = job->payload,
			.text_bytes = job->payload_bytes,
			.out = job->out + header_bytes,
		};
	}
	zdp_seal_batch(sealer->key, aead, count);
	sealer->sealed_with_key += count;
	for (size_t i = 0; i < count; i++)
		jobs[i].out_bytes = aead[i].ok ? jobs[i].payload_bytes + zdp_seal_overhead(sealer) : 0;
}

/* Puts header protection on: the sample is what follows four bytes of packet number. */
static bool protect(struct zdp_sealer *sealer, struct zdp_seal_job *jobs, size_t count)
{
	uint8_t masks[ZDP_OPEN_BATCH][ZDP_SAMPLE_BYTES];
	size_t number_at = 1 + (size_t)sealer->cid_bytes;

	if (!count)
		return true;
	for (size_t i = 0; i < count; i++)
		memcpy(masks[i], jobs[i].out + number_at + MAX_NUMBER_BYTES, ZDP_SAMPLE_BYTES);
	if (!zdp_masks(sealer->key, masks[0], count, masks[0]))
		return false;
	for (size_t i = 0; i < count; i++) {
		jobs[i].out[0] ^= masks[i][0] & PROTECTED_BITS;
		for (size_t j = 0; j < MAX_NUMBER_BYTES; j++)
			jobs[i].out[number_at + j] ^= masks[i][1 + j];
	}
	return true;
}

void zdp_seal_packets(struct zdp_sealer *sealer, struct zdp_seal_job *jobs, size_t count)
{
	size_t room = zdp_sealer_room(sealer);
	size_t done = count < room ? count : room;

	for (size_t i = 0; i < count; i++) {
		jobs[i].out_bytes = 0;
		jobs[i].number = UINT64_MAX;
	}
	if (!done)
		return;
	encrypt(sealer, jobs, done);
	if (!protect(sealer, jobs, done))
		for (size_t i = 0; i < done; i++)
			jobs[i].out_bytes = 0;
}
