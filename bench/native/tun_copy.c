/* SPDX-License-Identifier: Apache-2.0 */
/* What two TUNs alone cost: copies whatever one gives to the other, unchanged.
 *
 *     tun_copy NETNS_A NETNS_B DEVICE [vnet]
 *
 * NETNS are paths of network namespaces. `vnet`: with vnet headers, super-packets whole. */
#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <unistd.h>

#include "tun.h"

#define READS 64
#define READ_BYTES (10 + 40 + 65535)

static int open_in(const char *namespace, const char *device, bool vnet)
{
	const int there = open(namespace, O_RDONLY | O_CLOEXEC);
	bool udp;

	if (there < 0 || setns(there, CLONE_NEWNET))
		die(namespace);
	close(there);
	return open_tun(device, vnet, &udp);
}

static bool copy(int from, int to)
{
	static uint8_t buffer[READ_BYTES];
	int reads = 0;

	for (; reads < READS; reads++) {
		const ssize_t bytes = read(from, buffer, sizeof(buffer));

		if (bytes <= 0)
			break;
		/* What the other end does not take is lost, as on a wire. */
		if (write(to, buffer, (size_t)bytes) < 0)
			continue;
	}
	return reads > 0;
}

int main(int argc, char **argv)
{
	int one, other;

	if (argc < 4)
		return 2;
	one = open_in(argv[1], argv[3], argc > 4);
	other = open_in(argv[2], argv[3], argc > 4);
	puts("ready");
	fflush(stdout);
	for (;;) {
		struct pollfd waiting[] = { { one, POLLIN, 0 }, { other, POLLIN, 0 } };
		bool progress;

		do {
			progress = copy(one, other);
			progress = copy(other, one) || progress;
		} while (progress);
		poll(waiting, 2, -1);
	}
}
