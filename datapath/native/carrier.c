/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "carrier_private.h"

#include <errno.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"

#ifndef UDP_GRO
#define UDP_GRO 104
#endif

/* One call of recvmmsg: two big messages where the kernel merges packets (UDP_GRO), up to 64 where it
 * does not. What is handled at once should stay in the processor's cache. */
#define RECEIVE_LEAST 2
#define RECEIVE_GOAL_BYTES (128U << 10)
#define RECEIVE_BYTES 65536
/* Not a power of two: the beginnings of small messages must not all fall on the same cache lines. */
#define RECEIVE_STRIDE_BYTES (RECEIVE_BYTES + 192)
/* Opened packets are written to the TUN once there are so many. */
#define WRITE_AT_BYTES (64U << 10)
#define TUN_READS 64
#define TUN_READ_BYTES ZDP_MAX_READ_BYTES

_Static_assert(sizeof(struct in_pktinfo) == ZDP_LOCAL_IPV4_BYTES, "see path.h");
_Static_assert(sizeof(struct in6_pktinfo) == ZDP_LOCAL_IPV6_BYTES, "see path.h");

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
	carrier->received = malloc(ZDP_RECEIVE_MOST * RECEIVE_STRIDE_BYTES);
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

static bool is_same_address(const union zdp_address *one, const union zdp_address *other)
{
	if (one->any.sa_family != other->any.sa_family)
		return false;
	if (one->any.sa_family == AF_INET)
		return one->ipv4.sin_port == other->ipv4.sin_port &&
		       one->ipv4.sin_addr.s_addr == other->ipv4.sin_addr.s_addr;
	return one->ipv6.sin6_port == other->ipv6.sin6_port &&
	       one->ipv6.sin6_scope_id == other->ipv6.sin6_scope_id &&
	       !memcmp(&one->ipv6.sin6_addr, &other->ipv6.sin6_addr, 16);
}

static bool is_path(const struct zdp_session *session, const struct zdp_path *from)
{
	const struct zdp_local *local = &session->path.local;

	return is_same_address(&from->peer, &session->path.peer) &&
	       from->local.count == local->count &&
	       !memcmp(from->local.bytes, local->bytes, local->count);
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

/* The address that a packet came to, as answers are to have it. Routing picks their interface, as
 * always: it is part only of link-local addresses, which mean nothing without. False: another
 * message. */
static bool read_local(const struct cmsghdr *c, size_t bytes, struct zdp_local *local)
{
	if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO &&
	    bytes == sizeof(struct in6_pktinfo)) {
		struct in6_pktinfo info;

		memcpy(&info, CMSG_DATA(c), sizeof(info));
		if (!IN6_IS_ADDR_LINKLOCAL(&info.ipi6_addr))
			info.ipi6_ifindex = 0;
		memcpy(local->bytes, &info, sizeof(info));
		local->count = sizeof(info);
		return true;
	}
	if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO &&
	    bytes == sizeof(struct in_pktinfo)) {
		struct in_pktinfo info;

		memcpy(&info, CMSG_DATA(c), sizeof(info));
		info = (struct in_pktinfo){ .ipi_spec_dst = info.ipi_addr };
		memcpy(local->bytes, &info, sizeof(info));
		local->count = sizeof(info);
		return true;
	}
	return false;
}

static void read_control(const struct msghdr *header, uint16_t *segment_bytes, uint8_t *ecn,
			 struct zdp_local *local)
{
	local->count = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR((struct msghdr *)header, c)) {
		int number = 0;
		const size_t bytes = c->cmsg_len - CMSG_LEN(0);

		if (read_local(c, bytes, local))
			continue;
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
		     const struct zdp_path *from, uint64_t now_ns)
{
	if (run->count && !is_path(run->session, from)) {
		/* Authentic, it may be a migration (RFC 9000 section 9): aioquic's to judge. */
		zdp_session_sift(run->session, run->packets, run->count, *plain, from,
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
	struct zdp_path *from = &carrier->paths[index];
	const uint8_t *at = carrier->pieces[index].iov_base;
	const uint8_t *end = at + carrier->messages[index].msg_len;
	const uint8_t *last = NULL;
	uint16_t segment_bytes = 0;
	struct receive_run run;

	run.session = NULL;
	run.count = run.bytes = run.ecn = 0;
	from->peer_bytes = header->msg_namelen;
	read_control(header, &segment_bytes, &run.ecn, &from->local);
	if (!segment_bytes)
		segment_bytes = UINT16_MAX;
	if (at == end) /* an empty datagram is somebody's doing: it is counted like any other */
		zdp_report(&carrier->reports, ZDP_REPORT_PACKET, NULL, at, 0, 0, from);
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
				   from);
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
			.msg_name = &carrier->paths[i].peer,
			.msg_namelen = sizeof(carrier->paths[i].peer),
			.msg_iov = &carrier->pieces[i],
			.msg_iovlen = 1,
			.msg_control = carrier->controls[i].bytes,
			.msg_controllen = ZDP_CONTROL_BYTES,
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
	return wanted < ZDP_RECEIVE_MOST ? (unsigned int)wanted : ZDP_RECEIVE_MOST;
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
			zdp_carrier_send(carrier);
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
			zdp_carrier_send(carrier);
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
		zdp_carrier_send(carrier);
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

		zdp_carrier_send(carrier);
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
