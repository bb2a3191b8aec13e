/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "carrier.h"

#include <errno.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"
#include "outbox.h"
#include "timers.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

/* One call of recvmmsg: two big messages where the kernel merges packets (UDP_GRO), up to 64 where it
 * does not. What is handled at once should stay in the processor's cache. */
#define RECEIVE_MOST 64
#define RECEIVE_LEAST 2
#define RECEIVE_GOAL_BYTES (128U << 10)
#define RECEIVE_BYTES 65536
/* Not a power of two: the beginnings of small messages must not all fall on the same cache lines. */
#define RECEIVE_STRIDE_BYTES (RECEIVE_BYTES + 192)
/* Opened packets are written to the TUN once there are so many. */
#define WRITE_AT_BYTES (64U << 10)
#define TUN_READS 64
#define TUN_READ_BYTES ZDP_MAX_READ_BYTES
#define SEND_MESSAGES 32
#define CONTROL_BYTES 128

struct message_control {
	_Alignas(struct cmsghdr) uint8_t bytes[CONTROL_BYTES];
};

struct zdp_carrier {
	int udp_fd, tun_fd;
	size_t cid_bytes;
	bool tun_wanted, tun_gone, has_gso, error_pending;
	struct zdp_coalescer *tun;
	struct zdp_outbox *outbox;
	struct zdp_reports reports;
	struct zdp_table by_cid, by_address;
	struct zdp_networks by_network;
	struct zdp_session *only;
	TAILQ_HEAD(zdp_active, zdp_session) active;
	struct zdp_timers timers;
	struct zdp_carrier_counters counters;
	uint8_t *received, *plain, *read;
	/* Of recvmmsg. */
	unsigned int calls; /* messages to ask for next time */
	struct mmsghdr messages[RECEIVE_MOST];
	struct iovec pieces[RECEIVE_MOST];
	union zdp_address addresses[RECEIVE_MOST];
	struct message_control controls[RECEIVE_MOST];
};

uint64_t zdp_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

static void want_tos(int fd)
{
	const int on = 1;

	/* ECN is told where the system can tell it; nothing depends on it. */
	setsockopt(fd, IPPROTO_IP, IP_RECVTOS, &on, sizeof(on));
	setsockopt(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, &on, sizeof(on));
}

struct zdp_carrier *zdp_carrier_new(int udp_fd, size_t cid_bytes)
{
	struct zdp_carrier *carrier = calloc(1, sizeof(*carrier));

	if (!carrier)
		return NULL;
	TAILQ_INIT(&carrier->active);
	carrier->tun_fd = -1;
	carrier->cid_bytes = cid_bytes;
	carrier->outbox = zdp_outbox_new();
	carrier->calls = RECEIVE_LEAST;
	carrier->received = malloc(RECEIVE_MOST * RECEIVE_STRIDE_BYTES);
	carrier->plain = malloc(WRITE_AT_BYTES + RECEIVE_BYTES);
	carrier->read = malloc(TUN_READ_BYTES);
	if (!carrier->outbox || !carrier->received || !carrier->plain || !carrier->read) {
		zdp_carrier_free(carrier);
		return NULL;
	}
	zdp_carrier_set_udp(carrier, udp_fd);
	return carrier;
}

void zdp_carrier_free(struct zdp_carrier *carrier)
{
	if (!carrier)
		return;
	zdp_coalescer_free(carrier->tun);
	zdp_outbox_free(carrier->outbox);
	zdp_reports_free(&carrier->reports);
	zdp_table_free(&carrier->by_cid);
	zdp_table_free(&carrier->by_address);
	zdp_networks_free(&carrier->by_network);
	zdp_timers_free(&carrier->timers);
	free(carrier->received);
	free(carrier->plain);
	free(carrier->read);
	free(carrier);
}

void zdp_carrier_set_udp(struct zdp_carrier *carrier, int udp_fd)
{
	carrier->udp_fd = udp_fd;
	carrier->has_gso = true;
	if (udp_fd >= 0)
		want_tos(udp_fd);
}

static long write_tun(void *context, const struct iovec *iov, int count)
{
	const struct zdp_carrier *carrier = context;

	return writev(carrier->tun_fd, iov, count);
}

bool zdp_carrier_set_tun(struct zdp_carrier *carrier, int tun_fd, bool tcp, bool udp)
{
	zdp_coalescer_free(carrier->tun);
	carrier->tun = NULL;
	carrier->tun_fd = tun_fd;
	carrier->tun_gone = false;
	carrier->tun_wanted = tun_fd >= 0;
	if (tun_fd >= 0)
		carrier->tun = zdp_coalescer_new(write_tun, carrier, tcp, udp);
	return tun_fd < 0 || carrier->tun;
}

void zdp_carrier_set_only(struct zdp_carrier *carrier, struct zdp_session *session)
{
	carrier->only = session;
}

struct zdp_table *zdp_carrier_by_cid(struct zdp_carrier *carrier)
{
	return &carrier->by_cid;
}

struct zdp_table *zdp_carrier_by_address(struct zdp_carrier *carrier)
{
	return &carrier->by_address;
}

struct zdp_networks *zdp_carrier_by_network(struct zdp_carrier *carrier)
{
	return &carrier->by_network;
}

struct zdp_reports *zdp_carrier_reports(struct zdp_carrier *carrier)
{
	return &carrier->reports;
}

struct zdp_outbox *zdp_carrier_outbox(struct zdp_carrier *carrier)
{
	return carrier->outbox;
}

const struct zdp_carrier_counters *zdp_carrier_counters(const struct zdp_carrier *carrier)
{
	return &carrier->counters;
}

void zdp_carrier_tun_stats(const struct zdp_carrier *carrier, struct zdp_coalesce_stats *stats)
{
	memset(stats, 0, sizeof(*stats));
	if (carrier->tun)
		zdp_coalesce_stats(carrier->tun, stats);
}

bool zdp_carrier_take_error(struct zdp_carrier *carrier)
{
	const bool pending = carrier->error_pending;

	carrier->error_pending = false;
	return pending;
}

bool zdp_carrier_tun_is_gone(const struct zdp_carrier *carrier)
{
	return carrier->tun_gone;
}

/* Who has something to do. */

void zdp_carrier_activate(struct zdp_carrier *carrier, struct zdp_session *session)
{
	if (session->is_active)
		return;
	session->is_active = true;
	TAILQ_INSERT_TAIL(&carrier->active, session, active);
}

static void deactivate(struct zdp_carrier *carrier, struct zdp_session *session)
{
	if (!session->is_active)
		return;
	session->is_active = false;
	TAILQ_REMOVE(&carrier->active, session, active);
}

void zdp_carrier_forget(struct zdp_carrier *carrier, struct zdp_session *session)
{
	deactivate(carrier, session);
	zdp_timers_remove(&carrier->timers, session);
	if (carrier->only == session)
		carrier->only = NULL;
	zdp_table_remove_value(&carrier->by_cid, session);
	zdp_table_remove_value(&carrier->by_address, session);
	zdp_networks_remove_value(&carrier->by_network, session);
	zdp_outbox_forget(carrier->outbox, session);
	zdp_reports_forget(&carrier->reports, session);
}

/* 1 and 2: receive. */

static bool is_path(const struct zdp_session *session, const union zdp_address *from)
{
	if (from->any.sa_family != session->path.any.sa_family)
		return false;
	if (from->any.sa_family == AF_INET)
		return from->ipv4.sin_port == session->path.ipv4.sin_port &&
		       from->ipv4.sin_addr.s_addr == session->path.ipv4.sin_addr.s_addr;
	return from->ipv6.sin6_port == session->path.ipv6.sin6_port &&
	       from->ipv6.sin6_scope_id == session->path.ipv6.sin6_scope_id &&
	       !memcmp(&from->ipv6.sin6_addr, &session->path.ipv6.sin6_addr, 16);
}

/* Whose packet it is: a short header, and a connection ID that is known. `last` packet of the same
 * sender was `session`'s. */
static struct zdp_session *find_session(struct zdp_carrier *carrier, const uint8_t *packet,
					size_t bytes, const uint8_t *last,
					struct zdp_session *session)
{
	if (bytes < 1 + carrier->cid_bytes || (packet[0] & 0xc0) != 0x40)
		return NULL;
	if (session && !memcmp(packet + 1, last + 1, carrier->cid_bytes))
		return session;
	session = zdp_table_find(&carrier->by_cid, packet + 1, carrier->cid_bytes);
	return session && session->opener.key ? session : NULL;
}

static void read_control(const struct msghdr *header, uint16_t *segment_bytes, uint8_t *ecn)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR((struct msghdr *)header, c)) {
		int number = 0;
		const size_t bytes = c->cmsg_len - CMSG_LEN(0);

		memcpy(&number, CMSG_DATA(c), bytes < sizeof(number) ? bytes : sizeof(number));
		if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO)
			*segment_bytes = (uint16_t)number;
		else if ((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) ||
			 (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS))
			*ecn = number & 3;
	}
}

struct receive_run {
	struct zdp_session *session;
	struct zdp_received packets[ZDP_OPEN_BATCH];
	size_t count, bytes;
	uint8_t ecn;
};

static void take_run(struct zdp_carrier *carrier, struct receive_run *run, uint8_t **plain,
		     const union zdp_address *from, uint64_t now_ns)
{
	if (run->count && !is_path(run->session, from)) {
		/* Authentic, it may be a migration (RFC 9000 section 9): aioquic's to judge. */
		zdp_session_sift(run->session, run->packets, run->count, *plain, &from->any,
				 &carrier->reports);
		*plain += run->bytes;
	} else if (run->count) {
		zdp_session_receive(run->session, run->packets, run->count, run->ecn, *plain,
				    now_ns, carrier->tun, &carrier->reports);
		*plain += run->bytes;
		zdp_carrier_activate(carrier, run->session);
	}
	run->count = run->bytes = 0;
}

static void take_message(struct zdp_carrier *carrier, size_t index, uint8_t **plain,
			 uint64_t now_ns)
{
	const struct msghdr *header = &carrier->messages[index].msg_hdr;
	const union zdp_address *from = &carrier->addresses[index];
	const uint8_t *at = carrier->pieces[index].iov_base;
	const uint8_t *end = at + carrier->messages[index].msg_len;
	const uint8_t *last = NULL;
	uint16_t segment_bytes = 0;
	struct receive_run run;

	run.session = NULL;
	run.count = run.bytes = run.ecn = 0;
	read_control(header, &segment_bytes, &run.ecn);
	if (!segment_bytes)
		segment_bytes = UINT16_MAX;
	if (at == end) /* an empty datagram is somebody's doing: it is counted like any other */
		zdp_report(&carrier->reports, ZDP_REPORT_PACKET, NULL, at, 0, 0, &from->any);
	while (at < end) {
		const size_t left = (size_t)(end - at);
		const size_t bytes = left < segment_bytes ? left : segment_bytes;
		struct zdp_session *session =
			find_session(carrier, at, bytes, last, run.session);

		if (session != run.session || run.count == ZDP_OPEN_BATCH) {
			take_run(carrier, &run, plain, from, now_ns);
			run.session = session;
		}
		if (session) {
			run.packets[run.count].packet = at;
			run.packets[run.count++].bytes = bytes;
			run.bytes += bytes;
		} else {
			zdp_report(&carrier->reports, ZDP_REPORT_PACKET, NULL, at, bytes, 0,
				   &from->any);
		}
		carrier->counters.received_packets++;
		last = at;
		at += bytes;
	}
	take_run(carrier, &run, plain, from, now_ns);
	carrier->counters.received_bytes += carrier->messages[index].msg_len;
}

static void batches_done(struct zdp_carrier *carrier, uint64_t now_ns)
{
	struct zdp_session *session;

	TAILQ_FOREACH(session, &carrier->active, active)
		zdp_session_batch_done(session, now_ns);
}

static void prepare_messages(struct zdp_carrier *carrier)
{
	for (size_t i = 0; i < carrier->calls; i++) {
		carrier->pieces[i].iov_base = carrier->received + i * RECEIVE_STRIDE_BYTES;
		carrier->pieces[i].iov_len = RECEIVE_BYTES;
		carrier->messages[i].msg_hdr = (struct msghdr){
			.msg_name = &carrier->addresses[i],
			.msg_namelen = sizeof(carrier->addresses[i]),
			.msg_iov = &carrier->pieces[i],
			.msg_iovlen = 1,
			.msg_control = carrier->controls[i].bytes,
			.msg_controllen = CONTROL_BYTES,
		};
	}
}

/* As many messages as came, or as make up the goal when there may be more. */
static unsigned int next_calls(const struct zdp_carrier *carrier, unsigned int count, size_t bytes)
{
	const size_t wanted = count < carrier->calls ? count + 1 :
						       count * RECEIVE_GOAL_BYTES / (bytes + 1);

	if (wanted < RECEIVE_LEAST)
		return RECEIVE_LEAST;
	return wanted < RECEIVE_MOST ? (unsigned int)wanted : RECEIVE_MOST;
}

static void write_opened(struct zdp_carrier *carrier, uint8_t **plain)
{
	if (carrier->tun)
		zdp_coalesce_flush(carrier->tun);
	*plain = carrier->plain;
}

static bool receive(struct zdp_carrier *carrier, uint64_t now_ns)
{
	uint8_t *plain = carrier->plain;
	size_t bytes = 0;
	int count;

	if (carrier->udp_fd < 0)
		return false;
	prepare_messages(carrier);
	count = recvmmsg(carrier->udp_fd, carrier->messages, carrier->calls, MSG_DONTWAIT, NULL);
	if (count < 0) {
		/* A pending ICMP error is told once, in place of packets: look again. */
		if (errno == EAGAIN || errno == EINTR)
			return false;
		carrier->error_pending = true;
		return errno != EBADF && errno != ENOTSOCK;
	}
	carrier->counters.receive_calls++;
	for (int i = 0; i < count; i++) {
		bytes += carrier->messages[i].msg_len;
		take_message(carrier, (size_t)i, &plain, now_ns);
		if (plain >= carrier->plain + WRITE_AT_BYTES)
			write_opened(carrier, &plain);
	}
	write_opened(carrier, &plain);
	batches_done(carrier, now_ns);
	carrier->calls = next_calls(carrier, (unsigned int)count, bytes);
	return count > 0;
}

/* 6: send. Here, since steps 4 and 5 send whenever the outbox is full. */

#define ECT0 2

static void add_control(struct msghdr *header, struct message_control *control,
				   int level, int type, const void *value, size_t bytes)
{
	struct cmsghdr *c = (struct cmsghdr *)(control->bytes + header->msg_controllen);

	header->msg_control = control->bytes;
	header->msg_controllen += CMSG_SPACE(bytes);
	c->cmsg_level = level;
	c->cmsg_type = type;
	c->cmsg_len = CMSG_LEN(bytes);
	memcpy(CMSG_DATA(c), value, bytes);
}

/* An IPv4 peer of a dual-stack socket is sent IPv4 packets. */
static bool is_ipv4(const union zdp_address *address)
{
	return address->any.sa_family == AF_INET ||
	       IN6_IS_ADDR_V4MAPPED(&address->ipv6.sin6_addr);
}

static void set_controls(struct msghdr *header, struct message_control *control,
			 const struct zdp_out_run *run)
{
	const int tos = ECT0;

	header->msg_controllen = 0;
	if (run->count > 1)
		add_control(header, control, SOL_UDP, UDP_SEGMENT, &run->segment_bytes,
			    sizeof(run->segment_bytes));
	if (run->is_ect && is_ipv4(&run->session->path))
		add_control(header, control, IPPROTO_IP, IP_TOS, &tos, sizeof(tos));
	else if (run->is_ect)
		add_control(header, control, IPPROTO_IPV6, IPV6_TCLASS, &tos, sizeof(tos));
}

static void fill_message(struct msghdr *header, struct iovec *piece,
			 struct message_control *control, const struct zdp_out_run *run)
{
	memset(header, 0, sizeof(*header));
	*piece = (struct iovec){ (void *)run->data, run->bytes };
	header->msg_name = &run->session->path;
	header->msg_namelen = run->session->path_bytes;
	header->msg_iov = piece;
	header->msg_iovlen = 1;
	set_controls(header, control, run);
}

/* Packet by packet: where GSO is not to be had, or to see which packet is refused. */
static void send_singly(struct zdp_carrier *carrier, const struct zdp_out_run *run)
{
	struct zdp_out_run one = *run;
	struct message_control control;
	struct msghdr header;
	struct iovec piece;

	one.count = 1;
	for (size_t at = 0; at < run->bytes; at += run->segment_bytes) {
		const size_t left = run->bytes - at;
		const size_t bytes = left < run->segment_bytes ? left : run->segment_bytes;
		ssize_t sent = -1;

		one.data = run->data + at;
		one.bytes = bytes;
		fill_message(&header, &piece, &control, &one);
		/* The error that a call reports may be an ICMP message about an earlier packet;
		 * reported, it is gone: the second try is the real one. */
		for (int tries = 0; tries < 2 && sent < 0; tries++) {
			sent = sendmsg(carrier->udp_fd, &header, MSG_DONTWAIT);
			if (sent < 0 && (errno == EAGAIN || errno == EMSGSIZE))
				break;
		}
		carrier->counters.send_calls++;
		if (sent < 0) {
			carrier->error_pending = carrier->error_pending || errno != EAGAIN;
			carrier->counters.send_dropped++;
		}
	}
}

/* The first message of a call was refused. */
static void send_refused(struct zdp_carrier *carrier, const struct zdp_out_run *run, int error)
{
	if (error == EAGAIN || error == ENOBUFS) {
		carrier->counters.send_dropped += run->count;
		return;
	}
	if (error == EIO)
		carrier->has_gso = false; /* no checksum offload on this device */
	/* EINVAL: a segment above the path's MTU, or no GSO; one by one tells which. */
	send_singly(carrier, run);
}

static size_t send_some(struct zdp_carrier *carrier, const struct zdp_out_run *runs, size_t count)
{
	struct mmsghdr messages[SEND_MESSAGES];
	struct iovec pieces[SEND_MESSAGES];
	struct message_control controls[SEND_MESSAGES];
	int sent;

	if (count > SEND_MESSAGES)
		count = SEND_MESSAGES;
	for (size_t i = 0; i < count; i++) {
		if (runs[i].count > 1 && !carrier->has_gso) {
			if (!i) {
				send_singly(carrier, runs);
				return 1;
			}
			count = i;
			break;
		}
		fill_message(&messages[i].msg_hdr, &pieces[i], &controls[i], &runs[i]);
	}
	sent = sendmmsg(carrier->udp_fd, messages, (unsigned int)count, MSG_DONTWAIT);
	carrier->counters.send_calls++;
	if (sent > 0)
		return (size_t)sent;
	send_refused(carrier, runs, sent < 0 ? errno : EIO);
	return 1;
}

static void send_all(struct zdp_carrier *carrier)
{
	struct zdp_out_run *runs;
	const size_t count = zdp_outbox_runs(carrier->outbox, &runs);
	size_t done = 0;

	while (done < count)
		done += send_some(carrier, runs + done, count - done);
	for (size_t i = 0; i < count; i++) {
		carrier->counters.sent_packets += runs[i].count;
		carrier->counters.sent_bytes += runs[i].bytes;
	}
	zdp_outbox_clear(carrier->outbox);
}

/* 3 and 4: read the TUN. */

static struct zdp_session *session_at(const struct zdp_carrier *carrier, const uint8_t *address,
				      size_t bytes)
{
	struct zdp_session *session = zdp_table_find(&carrier->by_address, address, bytes);

	return session ? session : zdp_networks_find(&carrier->by_network, address, bytes);
}

static struct zdp_session *session_of(const struct zdp_carrier *carrier, const uint8_t *packet,
				      size_t bytes)
{
	if (carrier->only)
		return carrier->only;
	if (bytes >= 20 && packet[0] >> 4 == 4)
		return session_at(carrier, packet + 16, 4);
	if (bytes >= 40 && packet[0] >> 4 == 6)
		return session_at(carrier, packet + 24, 16);
	return NULL;
}

static void take_read(struct zdp_carrier *carrier, size_t bytes, uint64_t now_ns)
{
	const uint8_t *read = carrier->read;
	struct zdp_session *session;
	enum zdp_send_result result = ZDP_SEND_UNKNOWN;

	session = session_of(carrier, read + ZDP_VNET_BYTES, bytes - ZDP_VNET_BYTES);
	if (session && session->is_direct) {
		result = zdp_session_send_read(session, carrier->outbox, read, bytes, false,
					       now_ns);
		zdp_carrier_activate(carrier, session);
	}
	if (result == ZDP_SEND_UNKNOWN || result == ZDP_SEND_TOO_BIG)
		zdp_report(&carrier->reports, ZDP_REPORT_READ, session, read, bytes,
			   result == ZDP_SEND_TOO_BIG, NULL);
	if (!session)
		carrier->counters.no_session++;
}

static bool read_tun(struct zdp_carrier *carrier, uint64_t now_ns)
{
	int reads = 0;

	if (!carrier->tun_wanted)
		return false;
	for (; reads < TUN_READS; reads++) {
		const ssize_t bytes = read(carrier->tun_fd, carrier->read, TUN_READ_BYTES);

		if (bytes < 0) {
			/* EBADFD: somebody has deleted the device. The descriptor stays readable
			 * for good, so a caller that does not look would spin. */
			if (errno != EAGAIN && errno != EINTR) {
				carrier->tun_gone = true;
				carrier->tun_wanted = false;
			}
			break;
		}
		if (bytes <= ZDP_VNET_BYTES)
			continue;
		carrier->counters.tun_reads++;
		carrier->counters.tun_read_bytes += (uint64_t)bytes - ZDP_VNET_BYTES;
		take_read(carrier, (size_t)bytes, now_ns);
		if (zdp_outbox_is_full(carrier->outbox))
			send_all(carrier);
	}
	return reads > 0;
}

/* 5: serve those who have something to do. */

/* Nothing more to do now: it waits for its deadline, or for what comes. */
static void retire(struct zdp_carrier *carrier, struct zdp_session *session, uint64_t due_ns)
{
	if (due_ns == ZDP_NEVER) {
		zdp_timers_remove(&carrier->timers, session);
		zdp_session_rest(session);
	} else if (!zdp_timers_set(&carrier->timers, session, due_ns)) {
		return; /* no memory: it stays among the active */
	}
	deactivate(carrier, session);
}

static void activate_due(struct zdp_carrier *carrier, uint64_t now_ns)
{
	while (zdp_timers_next_ns(&carrier->timers) <= now_ns) {
		struct zdp_session *session = zdp_timers_first(&carrier->timers);

		zdp_timers_remove(&carrier->timers, session);
		zdp_carrier_activate(carrier, session);
	}
}

/* True: the outbox was full, so that somebody may still wait for room. */
static bool serve(struct zdp_carrier *carrier, uint64_t now_ns)
{
	struct zdp_session *session, *next;
	bool was_full = false;

	activate_due(carrier, now_ns);
	for (session = TAILQ_FIRST(&carrier->active); session; session = next) {
		uint64_t due_ns;

		next = TAILQ_NEXT(session, active);
		zdp_session_drain(session, carrier->outbox, now_ns, &carrier->reports);
		due_ns = zdp_session_deadline(session, now_ns);
		/* Recovery knows of no deadline for what is not sealed yet. */
		if (due_ns > now_ns && !zdp_outbox_holds(carrier->outbox, session))
			retire(carrier, session, due_ns);
		if (zdp_outbox_is_full(carrier->outbox)) {
			was_full = true;
			send_all(carrier);
		}
	}
	return was_full;
}

bool zdp_carrier_run(struct zdp_carrier *carrier, uint64_t limit_ns)
{
	const uint64_t began_ns = zdp_now_ns();
	uint64_t now_ns = began_ns;
	bool progress;

	do {
		progress = receive(carrier, now_ns);
		progress = read_tun(carrier, now_ns) || progress;
		progress = serve(carrier, now_ns) || progress;
		send_all(carrier);
		now_ns = zdp_now_ns();
	} while (progress && !zdp_reports_are_many(&carrier->reports) &&
		 now_ns - began_ns < limit_ns);
	return progress;
}

void zdp_carrier_flush(struct zdp_carrier *carrier)
{
	/* Bounded: what is left goes with the next run. */
	for (int rounds = 0; rounds < 16; rounds++) {
		const bool was_full = serve(carrier, zdp_now_ns());

		send_all(carrier);
		if (!was_full)
			return;
	}
}

uint64_t zdp_carrier_deadline(struct zdp_carrier *carrier, uint64_t now_ns)
{
	uint64_t at = zdp_timers_next_ns(&carrier->timers);
	const struct zdp_session *session;

	TAILQ_FOREACH(session, &carrier->active, active) {
		const uint64_t one = zdp_session_deadline(session, now_ns);

		if (one < at)
			at = one;
	}
	return at;
}

bool zdp_carrier_owns(const struct zdp_carrier *carrier, int fd)
{
	return fd == carrier->udp_fd || (fd == carrier->tun_fd && carrier->tun_wanted);
}

bool zdp_carrier_is_wanted(const struct zdp_carrier *carrier)
{
	return carrier->reports.count || carrier->error_pending || carrier->tun_gone;
}
