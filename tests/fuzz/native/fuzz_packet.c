/* sources: packet.c crypto.c crypto_ipsec_mb.c */
/* SPDX-License-Identifier: Apache-2.0 */
/* The packet opener. Some packets are the input as it is; others are sealed here, so that the fuzzer
 * gets behind the AEAD, and some of those are then changed. Keys are updated between batches. What
 * each packet must come to is known. */
#include "bytes.h"
#include "fuzz.h"
#include "packet.h"

#define PHASES 4
#define MAX_PACKETS 256

struct cipher_choice {
	const char *backend;
	enum zdp_cipher cipher;
};

static const struct cipher_choice choices[] = {
	{ "openssl", ZDP_AES_128_GCM },	 { "openssl", ZDP_CHACHA20_POLY1305 },
	{ "openssl", ZDP_AES_256_GCM },	 { "ipsec-mb", ZDP_AES_128_GCM },
	{ "ipsec-mb", ZDP_AES_256_GCM },
};

/* Both ends of one direction. */
struct world {
	enum zdp_cipher cipher;
	struct zdp_key *keys[PHASES]; /* the sender's */
	unsigned phase; /* the opener's */
	unsigned cid_bytes;
	struct zdp_opener opener;
	bool taken[1 << 16]; /* numbers of OPENED packets, from `base` on */
	uint64_t base;
};

static struct zdp_key *key_of(enum zdp_cipher cipher, unsigned phase)
{
	static const uint8_t header_key[32] = { 1 };
	uint8_t key[32] = { 2, (uint8_t)phase }, iv[ZDP_IV_BYTES] = { 3, (uint8_t)phase };
	struct zdp_key *made = zdp_key_new(cipher, key, iv, header_key);

	check(made);
	return made;
}

static void set_phase(struct world *world, unsigned phase)
{
	world->phase = phase;
	zdp_opener_set_key(&world->opener, key_of(world->cipher, phase), phase & 1);
}

static void begin(struct world *world, struct input *input)
{
	const struct cipher_choice *choice =
		&choices[take_byte(input) % (sizeof(choices) / sizeof(*choices))];

	if (!zdp_crypto_choose(choice->backend))
		zdp_crypto_choose("openssl");
	world->cipher = choice->cipher;
	world->cid_bytes = take_byte(input) % (ZDP_MAX_CID_BYTES + 1);
	world->opener.cid_bytes = (uint8_t)world->cid_bytes;
	world->base = take_number(input, take_byte(input) % 8 + 1) & (ZDP_VARINT_MAX >> 1);
	for (unsigned phase = 0; phase < PHASES; phase++)
		world->keys[phase] = key_of(world->cipher, phase);
	if (take_byte(input) % 16) /* without: every packet is foreign */
		set_phase(world, 0);
	if (world->base)
		check(zdp_replay_add(&world->opener.window, world->base - 1));
}

static void end(struct world *world)
{
	zdp_opener_free(&world->opener);
	for (unsigned phase = 0; phase < PHASES; phase++)
		zdp_key_free(world->keys[phase]);
}

/* A packet, and how it was made. */
struct packet {
	uint8_t *bytes, *out;
	size_t size;
	bool authentic;
	uint64_t number;
	unsigned phase;
	uint8_t first; /* of the header, before protection */
	uint8_t *payload;
	size_t payload_bytes;
};

static void raw_packet(struct packet *packet, struct input *input)
{
	packet->size = take_byte(input);
	packet->bytes = take_block(input, &packet->size);
	/* Past the first question, more often than not. */
	if (packet->size && packet->bytes[0] % 4)
		packet->bytes[0] = 0x40 | (packet->bytes[0] & 0x3f);
}

static void seal(struct world *world, struct packet *packet, size_t number_bytes)
{
	size_t number_at = 1 + world->cid_bytes, header_bytes = number_at + number_bytes;
	uint8_t mask[ZDP_SAMPLE_BYTES];
	struct zdp_aead_job job = {
		.packet_number = packet->number,
		.header = packet->bytes,
		.header_bytes = header_bytes,
		.text = packet->payload,
		.text_bytes = packet->payload_bytes,
		.out = packet->bytes + header_bytes,
	};

	packet->bytes[0] = packet->first;
	memset(packet->bytes + 1, 0xc1, world->cid_bytes);
	for (size_t i = 0; i < number_bytes; i++)
		packet->bytes[number_at + i] =
			(uint8_t)(packet->number >> 8 * (number_bytes - 1 - i));
	zdp_seal_batch(world->keys[packet->phase], &job, 1);
	check(job.ok);
	memcpy(mask, packet->bytes + number_at + 4, sizeof(mask));
	check(zdp_masks(world->keys[packet->phase], mask, 1, mask));
	packet->bytes[0] ^= mask[0] & 0x1f;
	for (size_t i = 0; i < number_bytes; i++)
		packet->bytes[number_at + i] ^= mask[1 + i];
}

static void sealed_packet(struct world *world, struct packet *packet, struct input *input)
{
	size_t number_bytes;
	uint64_t back = take_byte(input);

	packet->phase = take_byte(input) % PHASES;
	packet->first = 0x40 | (take_byte(input) & 0x3b) | (packet->phase & 1) << 2;
	number_bytes = (packet->first & 3) + 1U;
	/* Near what was received, so that a single byte of it can be completed. */
	packet->number = world->opener.window.next + 100 - back % 200;
	if (packet->number < world->base || packet->number - world->base >= 1 << 16)
		packet->number = world->opener.window.next;
	packet->payload_bytes = take_byte(input);
	packet->payload = take_block(input, &packet->payload_bytes);
	if (packet->payload_bytes < 4) {
		packet->payload = realloc(packet->payload, 4);
		check(packet->payload);
		memset(packet->payload, 0, 4);
		packet->payload_bytes = 4;
	}
	packet->size = 1 + world->cid_bytes + number_bytes + packet->payload_bytes + ZDP_TAG_BYTES;
	packet->bytes = malloc(packet->size);
	check(packet->bytes);
	packet->authentic = true;
	seal(world, packet, number_bytes);
}

static void make_packet(struct world *world, struct packet *packet, struct input *input)
{
	uint8_t how = take_byte(input);

	*packet = (struct packet){ 0 };
	if (how % 4 == 0) {
		raw_packet(packet, input);
	} else {
		sealed_packet(world, packet, input);
		if (how % 4 == 1) {
			/* Not the connection ID's alone: it is a part of what is authenticated. */
			packet->bytes[take_byte(input) % packet->size] ^= take_byte(input) | 1;
			packet->authentic = false;
		}
	}
	packet->out = malloc(packet->size ? packet->size : 1);
	check(packet->out);
}

static void free_packet(struct packet *packet)
{
	free(packet->bytes);
	free(packet->out);
	free(packet->payload);
}

/* Whether the opener had the key of this packet, and would have used it. */
static bool has_key(const struct world *world, const struct packet *packet, uint64_t phase_begin)
{
	const struct zdp_opener *opener = &world->opener;
	bool below = opener->previous && packet->number < phase_begin;

	if (!opener->key)
		return false;
	if (packet->phase == world->phase)
		return true;
	if ((packet->phase & 1) == (world->phase & 1))
		return false; /* two updates away: taken for the current one, and fails */
	return below ? packet->phase + 1 == world->phase :
		       opener->next && packet->phase == world->phase + 1;
}

static bool is_taken(const struct world *world, uint64_t number)
{
	return world->taken[number - world->base];
}

static void check_authentic(struct world *world, const struct packet *packet,
			    const struct zdp_open_job *job, uint64_t phase_begin)
{
	bool below = world->opener.previous && packet->number < phase_begin;

	if (!has_key(world, packet, phase_begin)) {
		check(job->result == ZDP_FOREIGN || job->result == ZDP_FORGED);
	} else if ((packet->first & 0x18) || (packet->phase != world->phase && !below)) {
		check(job->result == ZDP_FOREIGN);
	} else if (job->result == ZDP_DUPLICATE) {
		check(is_taken(world, packet->number));
	} else {
		check(job->result == ZDP_OPENED);
		check(!is_taken(world, packet->number));
		check(job->number == packet->number);
		check(job->spin == !!(packet->first & 0x20));
		check(job->out_bytes == packet->payload_bytes);
		check(!memcmp(job->out, packet->payload, job->out_bytes));
		world->taken[packet->number - world->base] = true;
	}
}

static void run_batch(struct world *world, struct input *input)
{
	struct packet packets[ZDP_OPEN_BATCH];
	struct zdp_open_job jobs[ZDP_OPEN_BATCH];
	size_t count = take_byte(input) % ZDP_OPEN_BATCH + 1;
	uint64_t phase_begin = world->opener.phase_begin, forged = world->opener.forged;

	for (size_t i = 0; i < count; i++) {
		if (!left(input))
			count = i + 1;
		make_packet(world, &packets[i], input);
		jobs[i] = (struct zdp_open_job){ .packet = packets[i].bytes,
						 .packet_bytes = packets[i].size,
						 .out = packets[i].out };
	}
	zdp_open_packets(&world->opener, jobs, count);
	for (size_t i = 0; i < count; i++) {
		if (packets[i].authentic)
			check_authentic(world, &packets[i], &jobs[i], phase_begin);
		else
			check(jobs[i].result == ZDP_FOREIGN || jobs[i].result == ZDP_FORGED);
		forged += jobs[i].result == ZDP_FORGED;
	}
	check(world->opener.forged == forged);
	for (size_t i = 0; i < count; i++) {
		if (jobs[i].result == ZDP_OPENED) {
			check(zdp_replay_add(&world->opener.window, jobs[i].number));
			check(zdp_replay_seen(&world->opener.window, jobs[i].number));
		}
		free_packet(&packets[i]);
	}
}

static void change_keys(struct world *world, uint8_t how)
{
	if (how % 8 == 1 && world->phase + 1 < PHASES && world->opener.key)
		set_phase(world, world->phase + 1);
	if (how % 8 == 2)
		zdp_opener_drop_previous(&world->opener);
	if (how % 8 == 3 && world->phase + 1 < PHASES)
		zdp_opener_set_next(&world->opener, key_of(world->cipher, world->phase + 1));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, data + size };
	struct world *world = calloc(1, sizeof(*world));

	check(world);
	begin(world, &input);
	for (int rounds = 0; rounds < 32 && left(&input); rounds++) {
		change_keys(world, take_byte(&input));
		run_batch(world, &input);
	}
	end(world);
	free(world);
	return 0;
}
