/* SPDX-License-Identifier: Apache-2.0 */
/* Step 6 of carrier.h: sendmmsg with UDP_SEGMENT. */
#define _GNU_SOURCE
#include "carrier_private.h"

#include <errno.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <string.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

#define SEND_MESSAGES 32

#define ECT0 2

static void add_control(struct msghdr *header, struct zdp_message_control *control,
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

static void set_controls(struct msghdr *header, struct zdp_message_control *control,
			 const struct zdp_out_run *run)
{
	const int tos = ECT0;
	const struct zdp_local *local = &run->session->path.local;

	header->msg_controllen = 0;
	if (run->count > 1)
		add_control(header, control, SOL_UDP, UDP_SEGMENT, &run->segment_bytes,
			    sizeof(run->segment_bytes));
	if (run->is_ect && is_ipv4(&run->session->path.peer))
		add_control(header, control, IPPROTO_IP, IP_TOS, &tos, sizeof(tos));
	else if (run->is_ect)
		add_control(header, control, IPPROTO_IPV6, IPV6_TCLASS, &tos, sizeof(tos));
	/* A dual-stack socket takes IPv4 addresses mapped, here as elsewhere. */
	if (local->count == ZDP_LOCAL_IPV6_BYTES)
		add_control(header, control, IPPROTO_IPV6, IPV6_PKTINFO, local->bytes, local->count);
	else if (local->count)
		add_control(header, control, IPPROTO_IP, IP_PKTINFO, local->bytes, local->count);
}

static void fill_message(struct msghdr *header, struct iovec *piece,
			 struct zdp_message_control *control, const struct zdp_out_run *run)
{
	memset(header, 0, sizeof(*header));
	*piece = (struct iovec){ (void *)run->data, run->bytes };
	header->msg_name = &run->session->path.peer;
	header->msg_namelen = run->session->path.peer_bytes;
	header->msg_iov = piece;
	header->msg_iovlen = 1;
	set_controls(header, control, run);
}

/* Packet by packet: where GSO is not to be had, or to see which packet is refused. */
static void send_singly(struct zdp_carrier *carrier, const struct zdp_out_run *run)
{
	struct zdp_out_run one = *run;
	struct zdp_message_control control;
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
	struct zdp_message_control controls[SEND_MESSAGES];
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

void zdp_carrier_send(struct zdp_carrier *carrier)
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
