/* SPDX-License-Identifier: Apache-2.0 */
/* The engine with the QUIC layer replaced by a null cipher: one end of a tunnel.
 *
 *     bare DEVICE PORT [PEER_IPV4]      with a peer: the client; without: the gateway
 *
 * The same batches, the same segmentation and coalescing (offload_*.c), the same UDP GSO and GRO and
 * the same packet sizes as zgate's, in the same order as carrier.c. Between them: nothing. No packet
 * numbers, no AEAD, no acknowledgements, no congestion control, no sessions, no Python. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "offload.h"
#include "tun.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

/* What zgate's packets have around the IP packet: short header with a connection ID of 8 and a
 * packet number of 4 bytes, frame type, quarter stream ID and context ID in front; the tag behind. */
#define FRONT_BYTES 16
#define TAG_BYTES 16
#define MAX_INNER_BYTES 1420
#define RECEIVE_CALLS 8
#define RECEIVE_BYTES 65536
#define TUN_READS 64
#define RUNS 32
#define RUN_BYTES 65000
#define RUN_SEGMENTS 64

struct run {
	uint8_t data[RUN_BYTES];
	size_t bytes, segment_bytes, count;
	bool is_closed; /* its last segment was a short one */
};

static int tun_fd, udp_fd;
static struct sockaddr_in peer;
static struct zdp_coalescer *coalescer;
static struct run runs[RUNS];
static size_t run_count;
static uint8_t received[RECEIVE_CALLS][RECEIVE_BYTES], read_buffer[ZDP_MAX_READ_BYTES];

static long write_tun(void *context, const struct iovec *iov, int count)
{
	(void)context;
	return writev(tun_fd, iov, count);
}

static size_t segment_of(struct msghdr *header, size_t whole)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO) {
			int bytes;

			memcpy(&bytes, CMSG_DATA(c), sizeof(bytes));
			return (size_t)bytes;
		}
	}
	return whole;
}

static void take(const uint8_t *data, size_t bytes, size_t segment_bytes)
{
	for (size_t at = 0; at < bytes; at += segment_bytes) {
		const size_t left = bytes - at;
		const size_t one = left < segment_bytes ? left : segment_bytes;

		if (one > FRONT_BYTES + TAG_BYTES)
			zdp_coalesce_add(coalescer, data + at + FRONT_BYTES,
					 one - FRONT_BYTES - TAG_BYTES);
	}
}

static bool receive(void)
{
	struct mmsghdr messages[RECEIVE_CALLS];
	struct iovec pieces[RECEIVE_CALLS];
	struct sockaddr_in from[RECEIVE_CALLS];
	_Alignas(struct cmsghdr) uint8_t controls[RECEIVE_CALLS][128];
	int count;

	for (size_t i = 0; i < RECEIVE_CALLS; i++) {
		pieces[i] = (struct iovec){ received[i], RECEIVE_BYTES };
		messages[i].msg_hdr = (struct msghdr){
			.msg_name = &from[i],
			.msg_namelen = sizeof(from[i]),
			.msg_iov = &pieces[i],
			.msg_iovlen = 1,
			.msg_control = controls[i],
			.msg_controllen = sizeof(controls[i]),
		};
	}
	count = recvmmsg(udp_fd, messages, RECEIVE_CALLS, MSG_DONTWAIT, NULL);
	if (count <= 0)
		return false;
	peer = from[0];
	for (int i = 0; i < count; i++)
		take(received[i], messages[i].msg_len,
		     segment_of(&messages[i].msg_hdr, messages[i].msg_len));
	zdp_coalesce_flush(coalescer);
	return true;
}

static void set_segment(struct msghdr *header, uint8_t *control, uint16_t bytes)
{
	struct cmsghdr *c;

	header->msg_control = control;
	header->msg_controllen = CMSG_SPACE(sizeof(bytes));
	c = CMSG_FIRSTHDR(header);
	c->cmsg_level = SOL_UDP;
	c->cmsg_type = UDP_SEGMENT;
	c->cmsg_len = CMSG_LEN(sizeof(bytes));
	memcpy(CMSG_DATA(c), &bytes, sizeof(bytes));
}

static void send_all(void)
{
	struct mmsghdr messages[RUNS];
	struct iovec pieces[RUNS];
	_Alignas(struct cmsghdr) uint8_t controls[RUNS][64];

	memset(messages, 0, run_count * sizeof(*messages));
	for (size_t i = 0; i < run_count; i++) {
		struct msghdr *header = &messages[i].msg_hdr;

		pieces[i] = (struct iovec){ runs[i].data, runs[i].bytes };
		header->msg_name = &peer;
		header->msg_namelen = sizeof(peer);
		header->msg_iov = &pieces[i];
		header->msg_iovlen = 1;
		if (runs[i].count > 1)
			set_segment(header, controls[i], (uint16_t)runs[i].segment_bytes);
	}
	/* What a full socket buffer does not take is lost, as on a wire. */
	if (run_count && peer.sin_port)
		sendmmsg(udp_fd, messages, (unsigned int)run_count, MSG_DONTWAIT);
	run_count = 0;
}

/* Room for one more packet of this size, behind those of the same run. */
static uint8_t *room_for(size_t bytes)
{
	struct run *run = run_count ? &runs[run_count - 1] : NULL;

	if (run_count == RUNS) {
		send_all();
		run = NULL;
	}
	if (!run || run->is_closed || bytes > run->segment_bytes || run->count == RUN_SEGMENTS ||
	    run->bytes + bytes > RUN_BYTES) {
		run = &runs[run_count++];
		run->bytes = run->count = 0;
		run->segment_bytes = bytes;
		run->is_closed = false;
	}
	run->is_closed = bytes < run->segment_bytes;
	run->count++;
	run->bytes += bytes;
	return run->data + run->bytes - bytes;
}

static void cut(size_t bytes)
{
	struct zdp_segmenter segmenter;
	size_t one;

	if (zdp_segment_begin(&segmenter, read_buffer, bytes, MAX_INNER_BYTES) != ZDP_SEGMENT_OK)
		return;
	while ((one = zdp_segment_bytes(&segmenter)) != 0) {
		uint8_t *out = room_for(one + FRONT_BYTES + TAG_BYTES);

		memset(out, 0x40, FRONT_BYTES);
		zdp_segment_next(&segmenter, out + FRONT_BYTES);
		memset(out + FRONT_BYTES + one, 0, TAG_BYTES);
	}
}

static bool read_tun(void)
{
	int reads = 0;

	for (; reads < TUN_READS && run_count + 3 < RUNS; reads++) {
		const ssize_t bytes = read(tun_fd, read_buffer, sizeof(read_buffer));

		if (bytes < 0 && errno != EAGAIN)
			die("reading the TUN");
		if (bytes < 0)
			break;
		if (bytes > ZDP_VNET_BYTES)
			cut((size_t)bytes);
	}
	return reads > 0;
}

static void open_udp(uint16_t port, const char *peer_address)
{
	const int on = 1, buffer_bytes = 8 << 20;
	struct sockaddr_in local = { .sin_family = AF_INET, .sin_port = htons(port) };

	udp_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (udp_fd < 0 || bind(udp_fd, (struct sockaddr *)&local, sizeof(local)))
		die("the UDP socket");
	setsockopt(udp_fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer_bytes, sizeof(buffer_bytes));
	setsockopt(udp_fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer_bytes, sizeof(buffer_bytes));
	if (setsockopt(udp_fd, SOL_UDP, UDP_GRO, &on, sizeof(on)))
		die("UDP_GRO");
	peer.sin_family = AF_INET;
	if (peer_address) {
		peer.sin_port = htons(port);
		inet_pton(AF_INET, peer_address, &peer.sin_addr);
	}
}

int main(int argc, char **argv)
{
	bool udp;

	if (argc < 3)
		return 2;
	tun_fd = open_tun(argv[1], true, &udp);
	open_udp((uint16_t)atoi(argv[2]), argc > 3 ? argv[3] : NULL);
	coalescer = zdp_coalescer_new(write_tun, NULL, true, udp);
	puts("ready");
	fflush(stdout);
	for (;;) {
		struct pollfd waiting[] = { { udp_fd, POLLIN, 0 }, { tun_fd, POLLIN, 0 } };
		bool progress;

		do {
			progress = receive();
			progress = read_tun() || progress;
			send_all();
		} while (progress);
		poll(waiting, 2, -1);
	}
}
