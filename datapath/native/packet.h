/* SPDX-License-Identifier: Apache-2.0 */
/* 1-RTT packets: short header, packet number, key phase, replay window (RFC 9000 sections 17.3
 * and 12.3, RFC 9001 sections 5.4 and 6).
 *
 *   first byte   0 1 S R R K P P   S spin, R reserved, K key phase, P packet number length - 1
 *   connection ID, packet number (1 to 4 bytes), payload, tag
 */
#ifndef ZDP_PACKET_H
#define ZDP_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crypto.h"

#define ZDP_MAX_CID_BYTES 20
/* A packet that holds more datagrams than this many behind is taken for a duplicate. */
#define ZDP_REPLAY_WINDOW_PACKETS 8192
#define ZDP_OPEN_BATCH 64

/* Which packet numbers were received: a sliding bitmap, allocated with the first packet and
 * small at first (a session that carries little must not pay for a window that holds a burst). */
struct zdp_replay_window {
	uint64_t next; /* one above the largest received */
	uint64_t *bits; /* ring of `size` bits; NULL until needed */
	uint32_t size; /* bits, a power of two, grows up to ZDP_REPLAY_WINDOW_PACKETS */
};

void zdp_replay_free(struct zdp_replay_window *window);
/* Whether the number was received before, or is too old to tell (which counts as received). */
bool zdp_replay_seen(const struct zdp_replay_window *window, uint64_t number);
/* Notes it; false when there is no memory (the packet must then be dropped). */
bool zdp_replay_add(struct zdp_replay_window *window, uint64_t number);

/* What opens packets of one connection. */
struct zdp_opener {
	struct zdp_key *key; /* of the current key phase; NULL: every packet is foreign */
	struct zdp_key *previous; /* of the phase before, kept for packets that were overtaken */
	struct zdp_key *next; /* of the phase to come, or NULL: see zdp_opener_set_next */
	/* Least number seen under `key`; UINT64_MAX before the first. Whoever knows of a smaller one
	 * (a packet that aioquic took) may lower it: while `previous` is kept, other-phase packets
	 * below it are taken for the previous phase's, those above for an update. */
	uint64_t phase_begin;
	uint64_t forged; /* AEADs that failed, over all keys; see zdp_key_forged_limit */
	uint8_t phase; /* 0 or 1 */
	uint8_t cid_bytes;
	struct zdp_replay_window window;
};

/* Takes ownership of `key`. A first key, or the next one after a key update: what `key` was
 * becomes `previous`. */
void zdp_opener_set_key(struct zdp_opener *opener, struct zdp_key *key, uint8_t phase);
/* Takes ownership of the key of the phase to come (RFC 9001 section 6.3 has it made ahead of time),
 * which is forgotten with the next zdp_opener_set_key. With it a packet of the other phase costs
 * its one AEAD here: an authentic one is ZDP_FOREIGN (aioquic makes the update), a forged one
 * ZDP_FORGED. Without it every such packet is ZDP_FOREIGN, and a forger can have aioquic derive
 * keys and try them for every second packet that it makes up. */
void zdp_opener_set_next(struct zdp_opener *opener, struct zdp_key *next);
/* The previous keys are no longer wanted (three PTOs after an update, RFC 9001 section 6.5). */
void zdp_opener_drop_previous(struct zdp_opener *opener);
void zdp_opener_free(struct zdp_opener *opener);

enum zdp_opened {
	ZDP_OPENED,
	/* aioquic's: no AEAD was spent on it (no key, no key for its phase, not a short header, too
	 * short for a sample), or it is authentic, and is of the next key phase or has reserved bits
	 * set (a PROTOCOL_VIOLATION, but only when authentic: RFC 9000 section 17.3.1). */
	ZDP_FOREIGN,
	ZDP_DUPLICATE, /* authentic, and known: drop */
	ZDP_FORGED,    /* did not open: drop, it must not cost a second AEAD */
};

struct zdp_open_job {
	const uint8_t *packet; /* untouched: a foreign packet goes to aioquic as it came */
	size_t packet_bytes;
	uint8_t *out; /* room for packet_bytes */
	/* Answers; all but the first only when it is ZDP_OPENED: */
	enum zdp_opened result;
	size_t out_bytes;
	uint64_t number;
	bool spin;
};

/* Opens up to ZDP_OPEN_BATCH packets of one connection, whose connection ID the caller has
 * matched. Opened numbers are NOT yet noted as received: the caller does (zdp_replay_add) when it
 * takes the packet itself, so that a packet that turns out to be aioquic's can be handed over
 * whole. Two authentic packets with one number in one batch: the second is ZDP_DUPLICATE.
 *
 * Short packet numbers are completed from `window.next`: what aioquic received must be added to the
 * window as well (its largest number is enough), or peers' packets would look forged. */
void zdp_open_packets(struct zdp_opener *opener, struct zdp_open_job *jobs, size_t count);

/* What seals packets of one connection. */
struct zdp_sealer {
	struct zdp_key *key; /* NULL: nothing can be sent */
	uint64_t next_number;
	uint64_t largest_acked; /* UINT64_MAX: none yet; for the packet number's length */
	uint64_t sealed_with_key; /* packets; AES-GCM: at most 2^23 (RFC 9001 section 6.6) */
	uint8_t phase;
	bool spin;
	uint8_t cid[ZDP_MAX_CID_BYTES];
	uint8_t cid_bytes;
};

/* Takes ownership of `key`, wipes the old one. */
void zdp_sealer_set_key(struct zdp_sealer *sealer, struct zdp_key *key, uint8_t phase);
void zdp_sealer_free(struct zdp_sealer *sealer);

struct zdp_seal_job {
	const uint8_t *payload; /* frames, at least one byte */
	size_t payload_bytes;
	uint8_t *out; /* room for payload_bytes + zdp_seal_overhead() */
	/* Answers: */
	size_t out_bytes; /* 0: not sealed, nothing to send */
	uint64_t number;
};

/* Always four bytes of packet number: short ones save nothing that matters, and every packet of a
 * GSO batch must have one size. */
static inline size_t zdp_seal_overhead(const struct zdp_sealer *sealer)
{
	return 1 + (size_t)sealer->cid_bytes + 4 + ZDP_TAG_BYTES;
}

/* How many packets zdp_seal_packets would take now, at most ZDP_OPEN_BATCH. 0: no key, or a limit is
 * reached (numbers, packets under one key, or 2^31 packets not acknowledged). */
size_t zdp_sealer_room(const struct zdp_sealer *sealer);

/* Seals up to ZDP_OPEN_BATCH payloads under consecutive numbers, as far as zdp_sealer_room goes. With four bytes of packet number
 * any payload of at least one byte is long enough for the header protection sample. */
void zdp_seal_packets(struct zdp_sealer *sealer, struct zdp_seal_job *jobs, size_t count);

#endif
