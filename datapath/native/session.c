/* SPDX-License-Identifier: Apache-2.0 */
#include "session.h"

#include <string.h>

#include "bytes.h"
#include "outbox.h"

#define FRAME_DATAGRAM 0x30
/* Our ACKs wait for company this long; the max_ack_delay that aioquic tells the peer is 25 ms. */
#define ACK_DELAY_NS 1000000ULL
/* An ACK at least every second batch that was received. */
#define ACK_BATCHES 2
#define PACKET_THRESHOLD 3
/* AES-GCM keys seal at most 2^23 packets (RFC 9001 section 6.6): ask for new ones well before. */
#define KEY_UPDATE_PACKETS (1ULL << 22)
/* A peer whose own path to us is being validated answers late, and three lost probes in a row mean
 * that a size does not fit: patience costs nothing but time. */
#define PROBE_LEAST_WAIT_NS 300000000ULL

#define QUEUE_TARGET_NS 5000000ULL
#define QUEUE_INTERVAL_NS 100000000ULL
#define QUEUE_MAX_BYTES (4U << 20)
#define QUEUE_QUANTUM_BYTES 1514

/* What a queued packet holds. */
enum { QUEUED_READ, QUEUED_FRAME };

bool zdp_session_init(struct zdp_session *session, const struct zdp_recovery_config *recovery)
{
	memset(session, 0, sizeof(*session));
	session->opener.phase_begin = UINT64_MAX;
	session->sealer.largest_acked = UINT64_MAX;
	session->ack_due_ns = ZDP_NEVER;
	session->ping_number = ZDP_NEVER;
	session->probe.number = ZDP_NEVER;
	session->key_update_packets = KEY_UPDATE_PACKETS;
	session->max_packet_bytes = recovery->max_packet_bytes;
	session->recovery = zdp_recovery_new(recovery);
	return session->recovery != NULL;
}

void zdp_session_free(struct zdp_session *session)
{
	zdp_opener_free(&session->opener);
	zdp_sealer_free(&session->sealer);
	zdp_ranges_free(&session->received);
	zdp_recovery_free(session->recovery);
	zdp_queue_free(session->queue);
	zdp_pairs_clear(&session->inbound);
	zdp_pairs_clear(&session->outbound);
	session->recovery = NULL;
	session->queue = NULL;
}

/* In. */

static bool acknowledges(const struct zdp_ack *ack, uint64_t number)
{
	for (size_t i = 0; i < ack->count; i++)
		if (number >= ack->ranges[i].first && number <= ack->ranges[i].last)
			return true;
	return false;
}

static void end_probe(struct zdp_session *session, enum zdp_report_kind kind,
		      struct zdp_reports *reports)
{
	/* A report that finds no room is tried again with the next ACK or deadline. */
	if (zdp_report(reports, kind, session, NULL, 0, session->probe.bytes, NULL))
		session->probe.number = ZDP_NEVER;
}

static void take_ack(struct zdp_session *session, const struct zdp_ack *ack, uint64_t now_ns,
		     struct zdp_reports *reports)
{
	const uint64_t largest = ack->ranges[0].last;
	struct zdp_ack_outcome outcome;

	zdp_recovery_ack(session->recovery, ack, session->sealer.next_number, now_ns, &outcome);
	if (outcome.bad) {
		zdp_report(reports, ZDP_REPORT_BAD_ACK, session, NULL, 0, 0, NULL);
		return;
	}
	if (session->sealer.largest_acked == UINT64_MAX || largest > session->sealer.largest_acked)
		session->sealer.largest_acked = largest;
	if (session->ping_number != ZDP_NEVER && largest >= session->ping_number) {
		if (acknowledges(ack, session->ping_number))
			zdp_ranges_forget(&session->received, session->ping_acknowledges);
		session->ping_number = ZDP_NEVER;
	}
	if (session->probe.number == ZDP_NEVER)
		return;
	if (acknowledges(ack, session->probe.number))
		end_probe(session, ZDP_REPORT_PROBE_ACKED, reports);
	else if (largest >= session->probe.number + PACKET_THRESHOLD)
		end_probe(session, ZDP_REPORT_PROBE_LOST, reports);
}

static void take_datagram(struct zdp_session *session, const uint8_t *data, size_t bytes,
			  struct zdp_coalescer *tun, struct zdp_reports *reports)
{
	const size_t prefix_bytes = session->prefix_bytes;

	if (session->is_direct && tun && bytes > prefix_bytes &&
	    !memcmp(data, session->prefix, prefix_bytes) &&
	    zdp_pairs_pass(&session->inbound, data + prefix_bytes, bytes - prefix_bytes)) {
		if (!session->counters.received_packets++)
			session->first_packet_ns = session->last_received_ns;
		session->counters.received_bytes += bytes - prefix_bytes;
		zdp_coalesce_add(tun, (uint8_t *)data + prefix_bytes, bytes - prefix_bytes);
		return;
	}
	zdp_report(reports, ZDP_REPORT_DATAGRAM, session, data, bytes, 0, NULL);
}

/* The number is ours: acknowledge it, and follow the spin bit (RFC 9000 section 17.4). */
static bool note_number(struct zdp_session *session, const struct zdp_open_job *job,
			bool eliciting, uint64_t now_ns)
{
	const uint64_t expected = session->opener.window.next;

	if (!zdp_replay_add(&session->opener.window, job->number) ||
	    !zdp_ranges_add(&session->received, job->number, job->number))
		return false;
	session->last_received_ns = now_ns;
	session->counters.opened_packets++;
	if (job->number >= expected) {
		session->largest_received_ns = now_ns;
		if (!session->spin_is_off)
			session->sealer.spin = session->is_client ? !job->spin : job->spin;
	}
	if (eliciting) {
		session->batch_is_eliciting = true;
		/* RFC 9000 section 13.2.1: what is out of order is acknowledged at once. */
		if (job->number != expected)
			session->ack_batches = ACK_BATCHES;
	}
	return true;
}

static void report_packet(struct zdp_session *session, const struct zdp_open_job *job,
			  const struct zdp_path *from, struct zdp_reports *reports)
{
	/* Nobody can open what is too short for a sample (RFC 9001 section 5.4.2). */
	if (job->packet_bytes < 1 + (size_t)session->opener.cid_bytes + 4 + ZDP_SAMPLE_BYTES) {
		session->counters.forged_packets++;
		return;
	}
	session->counters.foreign_packets++;
	zdp_report(reports, ZDP_REPORT_PACKET, session, job->packet, job->packet_bytes, 0, from);
}

static void take_opened(struct zdp_session *session, const struct zdp_open_job *job,
			uint64_t now_ns, struct zdp_coalescer *tun, struct zdp_reports *reports)
{
	struct zdp_frames frames;
	bool is_ours;

	/* Nearly every packet: one datagram that reaches to its end. */
	if (job->out_bytes && job->out[0] == FRAME_DATAGRAM) {
		if (note_number(session, job, true, now_ns))
			take_datagram(session, job->out + 1, job->out_bytes - 1, tun, reports);
		return;
	}
	is_ours = zdp_parse_frames(job->out, job->out_bytes, &frames) == ZDP_FRAMES_OURS;
	/* Also of a packet that aioquic gets: the peer may never repeat what it acknowledges there. */
	if (frames.has_ack)
		take_ack(session, &frames.ack, now_ns, reports);
	/* aioquic waits for ACKs too: it gets the packet whole, as if nobody had seen it. */
	if (!is_ours || (frames.has_ack && session->foreign_in_flight)) {
		report_packet(session, job, &session->path, reports);
		return;
	}
	if (!note_number(session, job, frames.ack_eliciting, now_ns))
		return;
	for (size_t i = 0; i < frames.datagram_count; i++)
		take_datagram(session, frames.datagrams[i].data, frames.datagrams[i].bytes, tun,
			      reports);
}

static void count_ecn(struct zdp_session *session, uint8_t ecn, uint64_t packets)
{
	static const size_t places[4] = { 0, offsetof(struct zdp_ecn_counts, ect1),
					  offsetof(struct zdp_ecn_counts, ect0),
					  offsetof(struct zdp_ecn_counts, ce) };

	if (ecn)
		*(uint64_t *)((char *)&session->ecn + places[ecn & 3]) += packets;
	/* RFC 9000 section 13.2.1: congestion is told at once. */
	if (ecn == 3 && packets)
		session->ack_batches = ACK_BATCHES;
}

static void make_jobs(const struct zdp_received *packets, size_t count, uint8_t *plain,
		      struct zdp_open_job *jobs)
{
	for (size_t i = 0; i < count; i++) {
		jobs[i].packet = packets[i].packet;
		jobs[i].packet_bytes = packets[i].bytes;
		jobs[i].out = plain;
		plain += packets[i].bytes;
	}
}

void zdp_session_sift(struct zdp_session *session, const struct zdp_received *packets, size_t count,
		      uint8_t *plain, const struct zdp_path *from, struct zdp_reports *reports)
{
	struct zdp_open_job jobs[ZDP_OPEN_BATCH];

	make_jobs(packets, count, plain, jobs);
	zdp_open_packets(&session->opener, jobs, count);
	for (size_t i = 0; i < count; i++) {
		if (jobs[i].result == ZDP_DUPLICATE)
			session->counters.duplicate_packets++;
		else if (jobs[i].result == ZDP_FORGED)
			session->counters.forged_packets++;
		else
			report_packet(session, &jobs[i], from, reports);
	}
}

void zdp_session_receive(struct zdp_session *session, const struct zdp_received *packets,
			 size_t count, uint8_t ecn, uint8_t *plain, uint64_t now_ns,
			 struct zdp_coalescer *tun, struct zdp_reports *reports)
{
	struct zdp_open_job jobs[ZDP_OPEN_BATCH];
	const uint64_t opened_before = session->counters.opened_packets;

	make_jobs(packets, count, plain, jobs);
	zdp_open_packets(&session->opener, jobs, count);
	for (size_t i = 0; i < count; i++) {
		switch (jobs[i].result) {
		case ZDP_OPENED:
			take_opened(session, &jobs[i], now_ns, tun, reports);
			break;
		case ZDP_FOREIGN:
			report_packet(session, &jobs[i], &session->path, reports);
			break;
		case ZDP_DUPLICATE:
			session->counters.duplicate_packets++;
			break;
		case ZDP_FORGED:
			session->counters.forged_packets++;
			break;
		}
	}
	if (!session->may_send)
		for (size_t i = 0; i < count; i++)
			session->unproved_bytes += packets[i].bytes;
	if (session->counters.opened_packets != opened_before)
		zdp_recovery_heard(session->recovery, now_ns);
	count_ecn(session, ecn, session->counters.opened_packets - opened_before);
	if (session->opener.key &&
	    session->opener.forged >= zdp_key_forged_limit(session->opener.key))
		zdp_report(reports, ZDP_REPORT_AEAD_LIMIT, session, NULL, 0, 0, NULL);
}

void zdp_session_batch_done(struct zdp_session *session, uint64_t now_ns)
{
	if (!session->batch_is_eliciting)
		return;
	session->batch_is_eliciting = false;
	if (++session->ack_batches >= ACK_BATCHES)
		session->ack_due_ns = now_ns;
	else if (session->ack_due_ns == ZDP_NEVER)
		session->ack_due_ns = now_ns + ACK_DELAY_NS;
}

bool zdp_session_note_received(struct zdp_session *session, uint64_t first, uint64_t last,
			       bool eliciting, uint64_t now_ns)
{
	for (uint64_t number = first; number <= last; number++)
		if (!zdp_replay_add(&session->opener.window, number))
			return false;
	/* The first packet of a new key phase is always aioquic's. */
	if (session->opener.previous && session->opener.phase_begin == UINT64_MAX)
		session->opener.phase_begin = last;
	if (!session->received.count || last > session->received.items[0].last)
		session->largest_received_ns = now_ns;
	if (eliciting && session->ack_due_ns == ZDP_NEVER)
		session->ack_due_ns = now_ns + ACK_DELAY_NS;
	return zdp_ranges_add(&session->received, first, last);
}

/* Out. */

static void queue_dropped(void *owner, const struct zdp_queued *packet, enum zdp_queue_drop why)
{
	struct zdp_session *session = owner;

	(void)packet;
	(void)why;
	session->counters.queue_dropped++;
}

static bool queue_marks(struct zdp_queued *packet)
{
	return packet->kind == QUEUED_READ && packet->bytes > ZDP_VNET_BYTES &&
	       zdp_mark_ce(packet->data + ZDP_VNET_BYTES, packet->bytes - ZDP_VNET_BYTES);
}

static enum zdp_send_result enqueue(struct zdp_session *session, uint8_t kind,
				    const uint8_t *data, size_t bytes, uint32_t done,
				    uint64_t now_ns)
{
	static const struct zdp_queue_limits limits = {
		.target_ns = QUEUE_TARGET_NS,
		.interval_ns = QUEUE_INTERVAL_NS,
		.max_bytes = QUEUE_MAX_BYTES,
		.quantum_bytes = QUEUE_QUANTUM_BYTES,
	};
	const size_t skipped = kind == QUEUED_READ ? ZDP_VNET_BYTES : session->prefix_bytes;
	struct zdp_queued *packet;

	if (!session->queue)
		session->queue = zdp_queue_new(&limits, queue_dropped, queue_marks, session);
	packet = session->queue ? zdp_queued_new((uint32_t)bytes) : NULL;
	if (!packet) {
		session->counters.queue_dropped++;
		return ZDP_SEND_DROPPED;
	}
	memcpy(packet->data, data, bytes);
	packet->kind = kind;
	packet->sent_bytes = done;
	packet->flow_hash = bytes > skipped ? zdp_flow_hash(data + skipped, bytes - skipped) : 0;
	zdp_queue_put(session->queue, packet, now_ns);
	return ZDP_SEND_DONE;
}

static bool has_queue(const struct zdp_session *session)
{
	return session->queue && !zdp_queue_is_empty(session->queue);
}

static size_t tunnel_mtu_bytes(const struct zdp_session *session)
{
	return session->max_frame_payload_bytes > session->prefix_bytes ?
		       session->max_frame_payload_bytes - session->prefix_bytes :
		       0;
}

/* Sends segments until all are out (true) or there is no room. */
static bool send_segments(struct zdp_session *session, struct zdp_outbox *outbox,
			  struct zdp_segmenter *segmenter)
{
	size_t bytes;

	while ((bytes = zdp_segment_bytes(segmenter))) {
		uint8_t *at = zdp_outbox_datagram(outbox, session->prefix_bytes + bytes);

		if (!at)
			return false;
		memcpy(at, session->prefix, session->prefix_bytes);
		zdp_segment_next(segmenter, at + session->prefix_bytes);
		session->counters.sent_packets++;
		session->counters.sent_bytes += bytes;
	}
	return true;
}

enum zdp_send_result zdp_session_send_read(struct zdp_session *session, struct zdp_outbox *outbox,
					   const uint8_t *read, size_t bytes, bool judged,
					   uint64_t now_ns)
{
	struct zdp_segmenter segmenter;
	enum zdp_segment_error error;

	if (!judged && (bytes <= ZDP_VNET_BYTES ||
			!zdp_pairs_pass(&session->outbound, read + ZDP_VNET_BYTES,
					bytes - ZDP_VNET_BYTES)))
		return ZDP_SEND_UNKNOWN;
	error = zdp_segment_begin(&segmenter, read, bytes, tunnel_mtu_bytes(session));
	if (error == ZDP_SEGMENT_TOO_BIG)
		return ZDP_SEND_TOO_BIG;
	if (error) {
		session->counters.unsendable++;
		return ZDP_SEND_DROPPED;
	}
	if (has_queue(session))
		return enqueue(session, QUEUED_READ, read, bytes, 0, now_ns);
	zdp_outbox_stage(outbox, session, now_ns);
	if (send_segments(session, outbox, &segmenter))
		return ZDP_SEND_DONE;
	return enqueue(session, QUEUED_READ, read, bytes, segmenter.index, now_ns);
}

enum zdp_send_result zdp_session_send_frame(struct zdp_session *session, struct zdp_outbox *outbox,
					    const uint8_t *payload, size_t bytes, uint64_t now_ns)
{
	uint8_t *at = NULL;

	if (bytes > session->max_frame_payload_bytes)
		return ZDP_SEND_TOO_BIG;
	if (!has_queue(session)) {
		zdp_outbox_stage(outbox, session, now_ns);
		at = zdp_outbox_datagram(outbox, bytes);
	}
	if (!at)
		return enqueue(session, QUEUED_FRAME, payload, bytes, 0, now_ns);
	memcpy(at, payload, bytes);
	return ZDP_SEND_DONE;
}

/* Sends the head of the queue; false when there is no room for it. */
static bool send_head(struct zdp_session *session, struct zdp_outbox *outbox,
		      struct zdp_queued *head)
{
	struct zdp_segmenter segmenter;
	uint32_t before = head->sent_bytes;
	bool all;

	if (head->kind == QUEUED_FRAME) {
		uint8_t *at;

		if (head->bytes > session->max_frame_payload_bytes) {
			session->counters.too_big++;
		} else {
			at = zdp_outbox_datagram(outbox, head->bytes);
			if (!at)
				return false;
			memcpy(at, head->data, head->bytes);
		}
		zdp_queue_done(session->queue, head, head->bytes, true);
		return true;
	}
	if (zdp_segment_begin(&segmenter, head->data, head->bytes, tunnel_mtu_bytes(session))) {
		/* It was fitting when it was queued; the path has shrunk since. */
		session->counters.too_big++;
		zdp_queue_done(session->queue, head, head->bytes, true);
		return true;
	}
	zdp_segment_seek(&segmenter, before);
	all = send_segments(session, outbox, &segmenter);
	head->sent_bytes = segmenter.index;
	zdp_queue_done(session->queue, head,
		       (segmenter.index - before) *
			       (uint32_t)(segmenter.header_bytes + segmenter.segment_payload_bytes),
		       all);
	return all;
}

static void send_queued(struct zdp_session *session, struct zdp_outbox *outbox, uint64_t now_ns)
{
	struct zdp_queued *head;

	zdp_outbox_stage(outbox, session, now_ns);
	/* Not below one packet: CoDel measures how long the head has waited when it leaves. */
	while (outbox->budget_bytes > session->max_frame_payload_bytes &&
	       (head = zdp_queue_head(session->queue, now_ns)) && send_head(session, outbox, head))
		;
}

void zdp_session_drain(struct zdp_session *session, struct zdp_outbox *outbox, uint64_t now_ns,
		       struct zdp_reports *reports)
{
	bool ping = false;

	if (zdp_recovery_deadline(session->recovery) <= now_ns) {
		struct zdp_ack_outcome outcome;

		ping = zdp_recovery_timer(session->recovery, now_ns, &outcome);
	}
	if (session->probe.number != ZDP_NEVER && session->probe.lost_at_ns <= now_ns)
		end_probe(session, ZDP_REPORT_PROBE_LOST, reports);
	if (!session->may_send || !session->sealer.key)
		return;
	if (has_queue(session))
		send_queued(session, outbox, now_ns);
	if (ping) {
		zdp_outbox_stage(outbox, session, now_ns);
		zdp_outbox_ping(outbox);
	}
	if (session->ack_due_ns <= now_ns) {
		zdp_outbox_stage(outbox, session, now_ns);
		zdp_outbox_ack(outbox);
	}
	if (session->sealer.sealed_with_key >= session->key_update_packets && !session->key_told &&
	    session->sealer.largest_acked != UINT64_MAX &&
	    session->sealer.largest_acked >= session->phase_began_at) {
		session->key_told = zdp_report(reports, ZDP_REPORT_KEY_WORN, session, NULL, 0,
					       session->sealer.phase, NULL);
	}
}

uint64_t zdp_session_deadline(const struct zdp_session *session, uint64_t now_ns)
{
	uint64_t at = zdp_recovery_deadline(session->recovery), other;

	if (session->probe.number != ZDP_NEVER && session->probe.lost_at_ns < at)
		at = session->probe.lost_at_ns;
	if (!session->may_send || !session->sealer.key)
		return at;
	if (session->ack_due_ns < at)
		at = session->ack_due_ns;
	/* At a limit of the key nothing leaves before the key is another, whatever the window says. */
	if (has_queue(session) && zdp_sealer_room(&session->sealer) == ZDP_OPEN_BATCH) {
		other = zdp_recovery_send_at(session->recovery, now_ns);
		if (other < at)
			at = other;
	}
	return at;
}

void zdp_session_rest(struct zdp_session *session)
{
	if (session->queue && zdp_queue_is_empty(session->queue)) {
		zdp_queue_free(session->queue);
		session->queue = NULL;
	}
}

size_t zdp_session_seal_probe(struct zdp_session *session, uint8_t *out, size_t bytes,
			      uint64_t now_ns)
{
	static const uint8_t ping_and_padding[65536] = { 0x01 };
	const size_t overhead = zdp_seal_overhead(&session->sealer);
	struct zdp_recovery_stats stats;
	struct zdp_seal_job job = {
		.payload = ping_and_padding,
		.payload_bytes = bytes > overhead ? bytes - overhead : 0,
		.out = out,
	};

	if (!session->may_send || !session->sealer.key || !job.payload_bytes ||
	    job.payload_bytes > sizeof(ping_and_padding))
		return 0;
	zdp_recovery_stats(session->recovery, &stats);
	zdp_seal_packets(&session->sealer, &job, 1);
	session->probe.number = job.number;
	session->probe.bytes = (uint32_t)bytes;
	session->probe.lost_at_ns = now_ns + PROBE_LEAST_WAIT_NS + 3 * stats.smoothed_rtt_ns +
				    12 * stats.rtt_variance_ns;
	session->counters.sealed_packets++;
	return job.out_bytes;
}
