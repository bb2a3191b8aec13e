/* SPDX-License-Identifier: Apache-2.0 */
/* Payloads of one session are collected, sealed together, and lie one behind the other, so that
 * packets of equal size leave in one GSO send. */
#include "outbox.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"

#define FRAME_PING 0x01
#define FRAME_DATAGRAM 0x30
#define FRAME_DATAGRAM_LENGTH 0x31
/* A second datagram shares a packet only when this much room is left. */
#define LEAST_SHARED_BYTES 64
/* Moving a payload to put an ACK before it is cheaper than another packet only while it is small. */
#define MOST_MOVED_BYTES 512
#define ACK_DELAY_EXPONENT 3
/* Above this many ranges an ACK asks to be acknowledged, so that old ranges can be forgotten
 * (RFC 9000 section 13.2.4). */
#define MANY_RANGES 8
/* What a full batch of payloads may become. */
#define BATCH_SEALED_BYTES \
	(ZDP_PLAIN_BYTES + ZDP_OPEN_BATCH * (1 + ZDP_MAX_CID_BYTES + 4 + ZDP_TAG_BYTES))

struct zdp_outbox *zdp_outbox_new(void)
{
	struct zdp_outbox *outbox = calloc(1, sizeof(*outbox));

	if (!outbox)
		return NULL;
	outbox->plain = malloc(ZDP_PLAIN_BYTES);
	outbox->sealed = malloc(ZDP_SEALED_BYTES);
	if (!outbox->plain || !outbox->sealed) {
		zdp_outbox_free(outbox);
		return NULL;
	}
	return outbox;
}

void zdp_outbox_free(struct zdp_outbox *outbox)
{
	if (!outbox)
		return;
	free(outbox->plain);
	free(outbox->sealed);
	free(outbox);
}

/* A DATAGRAM frame with its type: the peer may take less in one than a packet holds. */
static size_t frame_most_bytes(const struct zdp_session *session)
{
	return session->max_frame_payload_bytes + 1;
}

/* The frames of one packet: what the path carries, whatever the peer thinks of datagrams. */
static size_t packet_most_bytes(const struct zdp_session *session)
{
	const size_t frame = frame_most_bytes(session);
	const size_t overhead = zdp_seal_overhead(&session->sealer);

	return session->max_packet_bytes > frame + overhead ? session->max_packet_bytes - overhead :
							      frame;
}

bool zdp_outbox_is_full(const struct zdp_outbox *outbox)
{
	return outbox->run_count + ZDP_OPEN_BATCH > ZDP_OUT_RUNS ||
	       outbox->sealed_used + BATCH_SEALED_BYTES > ZDP_SEALED_BYTES;
}

bool zdp_outbox_is_empty(const struct zdp_outbox *outbox)
{
	return !outbox->job_count && !outbox->run_count;
}

static size_t write_ack(const struct zdp_session *session, uint8_t *out, size_t room,
			uint64_t now_ns)
{
	/* What is sent may have been made before what is acknowledged came. */
	const uint64_t delay_us = now_ns > session->largest_received_ns ?
					  (now_ns - session->largest_received_ns) / 1000 :
					  0;
	const bool has_ecn = session->ecn.ect0 || session->ecn.ect1 || session->ecn.ce;

	return zdp_write_ack(out, room, &session->received, delay_us >> ACK_DELAY_EXPONENT,
			     has_ecn ? &session->ecn : NULL);
}

static void acknowledged(struct zdp_session *session)
{
	session->ack_due_ns = ZDP_NEVER;
	session->ack_batches = 0;
	session->counters.acks_sent++;
}

/* An ACK that is due soon rides with the last packet, when that is a small one. */
static void add_ack(struct zdp_outbox *outbox)
{
	struct zdp_session *session = outbox->session;
	struct zdp_seal_job *last = &outbox->jobs[outbox->job_count - 1];
	uint8_t ack[MOST_MOVED_BYTES];
	uint8_t *payload = (uint8_t *)last->payload;
	size_t room = outbox->last_room, bytes;

	if (session->ack_due_ns == ZDP_NEVER || last->payload_bytes > MOST_MOVED_BYTES ||
	    !outbox->eliciting[outbox->job_count - 1] || last->payload_bytes >= room)
		return;
	room -= last->payload_bytes;
	bytes = write_ack(session, ack, room < sizeof(ack) ? room : sizeof(ack), outbox->now_ns);
	if (!bytes)
		return;
	memmove(payload + bytes, payload, last->payload_bytes);
	memcpy(payload, ack, bytes);
	last->payload_bytes += bytes;
	acknowledged(session);
}

/* One more packet for the socket: part of the last run when it fits behind it. */
static void add_run(struct zdp_outbox *outbox, const struct zdp_seal_job *job, bool is_ect)
{
	struct zdp_out_run *run =
		outbox->run_count ? &outbox->runs[outbox->run_count - 1] : NULL;
	const bool is_whole = run && run->bytes == (size_t)run->segment_bytes * run->count;

	if (run && is_whole && run->session == outbox->session && run->is_ect == is_ect &&
	    job->out_bytes <= run->segment_bytes && run->count < ZDP_GSO_MAX_SEGMENTS &&
	    run->bytes + job->out_bytes <= ZDP_GSO_MAX_BYTES) {
		run->bytes += job->out_bytes;
		run->count++;
		return;
	}
	outbox->runs[outbox->run_count++] = (struct zdp_out_run){
		.session = outbox->session,
		.data = job->out,
		.bytes = job->out_bytes,
		.segment_bytes = (uint16_t)job->out_bytes,
		.count = 1,
		.is_ect = is_ect,
	};
}

/* Tells recovery of the packets, those of one size together. */
static void register_sent(struct zdp_outbox *outbox)
{
	struct zdp_session *session = outbox->session;
	size_t i = 0;

	while (i < outbox->job_count) {
		const struct zdp_seal_job *first = &outbox->jobs[i];
		uint32_t count = 1;

		if (!outbox->eliciting[i] || !first->out_bytes) {
			i++;
			continue;
		}
		while (i + count < outbox->job_count && outbox->eliciting[i + count] &&
		       outbox->jobs[i + count].out_bytes == first->out_bytes)
			count++;
		/* No memory: they count as lost at once, and the queue waits for the next ACK. */
		zdp_recovery_sent(session->recovery, first->number, count,
				  (uint32_t)first->out_bytes,
				  !session->queue || zdp_queue_is_empty(session->queue),
				  outbox->now_ns);
		if (session->first_sent_ns <= session->last_received_ns)
			session->first_sent_ns = outbox->now_ns;
		i += count;
	}
}

static void seal(struct zdp_outbox *outbox)
{
	struct zdp_session *session = outbox->session;
	bool marks;
	uint8_t *out = outbox->sealed + outbox->sealed_used;

	if (!outbox->job_count)
		return;
	add_ack(outbox);
	for (size_t i = 0; i < outbox->job_count; i++) {
		outbox->jobs[i].out = out;
		out += outbox->jobs[i].payload_bytes + zdp_seal_overhead(&session->sealer);
	}
	zdp_seal_packets(&session->sealer, outbox->jobs, outbox->job_count);
	/* At a limit of the key nothing is sealed, and nothing counts as sent. */
	while (outbox->job_count && !outbox->jobs[outbox->job_count - 1].out_bytes)
		outbox->job_count--;
	/* What recovery is not told of is not marked: the peer's counts are compared with its own. */
	marks = zdp_recovery_marks_ect0(session->recovery);
	for (size_t i = 0; i < outbox->job_count; i++)
		if (outbox->jobs[i].out_bytes)
			add_run(outbox, &outbox->jobs[i], marks && outbox->eliciting[i]);
	outbox->sealed_used = (size_t)(out - outbox->sealed);
	register_sent(outbox);
	session->counters.sealed_packets += outbox->job_count;
	outbox->job_count = 0;
	outbox->plain_used = 0;
	outbox->is_open = false;
}

void zdp_outbox_stage(struct zdp_outbox *outbox, struct zdp_session *session, uint64_t now_ns)
{
	if (outbox->session == session && outbox->now_ns == now_ns)
		return;
	seal(outbox);
	outbox->session = session;
	outbox->now_ns = now_ns;
	outbox->budget_bytes = 0;
	if (session->may_send && zdp_sealer_room(&session->sealer) == ZDP_OPEN_BATCH)
		outbox->budget_bytes = zdp_recovery_allowance(session->recovery, now_ns);
}

/* A new payload of at most `most` bytes; NULL when the outbox has to be sent first. */
static struct zdp_seal_job *new_payload(struct zdp_outbox *outbox, size_t most, bool eliciting)
{
	struct zdp_seal_job *job;

	if (outbox->job_count == ZDP_OPEN_BATCH || outbox->plain_used + most > ZDP_PLAIN_BYTES)
		seal(outbox);
	if (zdp_outbox_is_full(outbox) || most > ZDP_PLAIN_BYTES)
		return NULL;
	job = &outbox->jobs[outbox->job_count];
	memset(job, 0, sizeof(*job));
	job->payload = outbox->plain + outbox->plain_used;
	outbox->plain_used += most;
	outbox->last_room = most;
	outbox->eliciting[outbox->job_count++] = eliciting;
	outbox->is_open = false;
	return job;
}

static uint8_t *append(struct zdp_seal_job *job, size_t bytes)
{
	uint8_t *at = (uint8_t *)job->payload + job->payload_bytes;

	job->payload_bytes += bytes;
	return at;
}

static uint8_t *append_with_length(struct zdp_seal_job *job, size_t bytes)
{
	uint8_t *at = append(job, 1 + zdp_varint_bytes(bytes) + bytes);

	*at = FRAME_DATAGRAM_LENGTH;
	return at + 1 + zdp_store_varint(at + 1, bytes);
}

uint8_t *zdp_outbox_datagram(struct zdp_outbox *outbox, size_t bytes)
{
	struct zdp_session *session = outbox->session;
	const size_t most = packet_most_bytes(session);
	const size_t framed = 1 + zdp_varint_bytes(bytes) + bytes;
	const bool takes_length = framed <= frame_most_bytes(session);
	const size_t overhead = zdp_seal_overhead(&session->sealer);
	struct zdp_seal_job *job;
	uint8_t *at;

	if (outbox->is_open) {
		job = &outbox->jobs[outbox->job_count - 1];
		if (takes_length && job->payload_bytes + framed <= outbox->last_room &&
		    framed <= outbox->budget_bytes) {
			outbox->budget_bytes -= framed;
			return append_with_length(job, bytes);
		}
	}
	if (framed + overhead > outbox->budget_bytes)
		return NULL;
	job = new_payload(outbox, most, true);
	if (!job)
		return NULL;
	outbox->budget_bytes -= framed + overhead;
	if (takes_length && framed + LEAST_SHARED_BYTES <= most) {
		outbox->is_open = true;
		return append_with_length(job, bytes);
	}
	at = append(job, 1 + bytes);
	*at = FRAME_DATAGRAM;
	return at + 1;
}

void zdp_outbox_ack(struct zdp_outbox *outbox)
{
	struct zdp_session *session = outbox->session;
	const bool asks = session->received.count >= MANY_RANGES &&
			  session->ping_number == ZDP_NEVER && session->received.items;
	const size_t most = packet_most_bytes(session);
	struct zdp_seal_job *job = new_payload(outbox, most, asks);
	size_t bytes;

	if (!job)
		return;
	bytes = write_ack(session, (uint8_t *)job->payload, most - 1, outbox->now_ns);
	if (!bytes) {
		outbox->job_count--;
		outbox->plain_used -= most;
		session->ack_due_ns = ZDP_NEVER;
		return;
	}
	job->payload_bytes = bytes;
	if (asks) {
		*append(job, 1) = FRAME_PING;
		session->ping_number = session->sealer.next_number + outbox->job_count - 1;
		session->ping_acknowledges = session->received.items[0].last;
	}
	acknowledged(session);
}

void zdp_outbox_ping(struct zdp_outbox *outbox)
{
	struct zdp_seal_job *job = new_payload(outbox, packet_most_bytes(outbox->session), true);

	if (job)
		*append(job, 1) = FRAME_PING;
}

size_t zdp_outbox_runs(struct zdp_outbox *outbox, struct zdp_out_run **runs)
{
	seal(outbox);
	*runs = outbox->runs;
	return outbox->run_count;
}

void zdp_outbox_clear(struct zdp_outbox *outbox)
{
	outbox->run_count = 0;
	outbox->sealed_used = 0;
	/* What may be sent is asked anew: the clock has moved on. */
	outbox->session = NULL;
}

bool zdp_outbox_holds(const struct zdp_outbox *outbox, const struct zdp_session *session)
{
	return outbox->session == session && outbox->job_count;
}

void zdp_outbox_forget(struct zdp_outbox *outbox, const struct zdp_session *session)
{
	size_t kept = 0;

	if (outbox->session == session) {
		outbox->job_count = 0;
		outbox->plain_used = 0;
		outbox->is_open = false;
		outbox->session = NULL;
	}
	for (size_t i = 0; i < outbox->run_count; i++)
		if (outbox->runs[i].session != session)
			outbox->runs[kept++] = outbox->runs[i];
	outbox->run_count = kept;
}
