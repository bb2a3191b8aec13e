/* SPDX-License-Identifier: Apache-2.0 */
/* A TUN of this thread's network namespace, for the bench's own programs. */
#ifndef ZGATE_BENCH_TUN_H
#define ZGATE_BENCH_TUN_H

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

static inline void die(const char *what)
{
	perror(what);
	exit(1);
}

/* Non-blocking. `vnet`: with vnet headers and super-packets; *udp says whether of UDP, too. */
static inline int open_tun(const char *name, bool vnet, bool *udp)
{
	const unsigned int tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
	struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI };
	const int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		die("/dev/net/tun");
	if (vnet)
		request.ifr_flags |= IFF_VNET_HDR;
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	if (ioctl(fd, TUNSETIFF, &request))
		die(name);
	*udp = vnet && !ioctl(fd, TUNSETOFFLOAD, tcp | TUN_F_USO4 | TUN_F_USO6);
	if (vnet && !*udp && ioctl(fd, TUNSETOFFLOAD, tcp))
		die("TUNSETOFFLOAD");
	return fd;
}

#endif
