/* SPDX-License-Identifier: Apache-2.0 */
/* Which worker gets a packet: zg_steer_udp what arrives at the UDP port (SK_REUSEPORT), by the
 * connection ID; zg_steer_tun what the kernel routes into the TUN (SOCKET_FILTER), by the
 * destination address, or the longest network around it. Workers are numbered, and so are their
 * sockets and queues.
 *
 * A connection ID that a worker has issued is 8 bytes: the worker's number, masked by a keyed
 * function of the 7 random bytes that follow (zgate_datapath.connection_ids). What names nobody,
 * such as the ID that a client makes up for its first packet, goes where the kernel's hash of
 * addresses and ports sends it: always to the same worker.
 */
#include <linux/bpf.h>

#define ZG_UDP_HEADER_BYTES 8
#define ZG_CID_BYTES 8
#define ZG_LONG_HEADER 0x80
/* First byte and version lie before the length of a long header's connection ID. */
#define ZG_LONG_LENGTH_OFFSET 5
#define ZG_RANDOM_BITS 56
#define ZG_NOBODY 0xFFFFFFFFU

#define zg_map(name) ((void *)bpf_pseudo_fd(1, ZG_MAP_##name))
/* A secret: the loader puts it in the place of a number that stands for it. */
#define zg_constant(name) ((__u64)bpf_pseudo_fd(0, ZG_CONSTANT_##name))

static __always_inline __u32 zg_owner(__u64 word)
{
	const __u64 rest = word & ((1ULL << ZG_RANDOM_BITS) - 1);
	const __u64 mask = rest * zg_constant(mask_factor) + zg_constant(mask_offset);

	return (word >> ZG_RANDOM_BITS) ^ (mask >> ZG_RANDOM_BITS);
}

/* The worker that a packet names; ZG_NOBODY where it names none. */
static __always_inline __u32 zg_named(struct sk_reuseport_md *md)
{
	__u32 offset = ZG_UDP_HEADER_BYTES;
	__u8 first, length;
	__u64 word;

	if (bpf_skb_load_bytes(md, offset, &first, sizeof(first)))
		return ZG_NOBODY;
	if (first & ZG_LONG_HEADER) {
		if (bpf_skb_load_bytes(md, offset + ZG_LONG_LENGTH_OFFSET, &length, sizeof(length)))
			return ZG_NOBODY;
		if (length != ZG_CID_BYTES)
			return ZG_NOBODY;
		offset += ZG_LONG_LENGTH_OFFSET;
	}
	if (bpf_skb_load_bytes(md, offset + 1, &word, sizeof(word)))
		return ZG_NOBODY;
	return zg_owner(bpf_ntohll(word));
}

int zg_steer_udp(struct sk_reuseport_md *md)
{
	__u32 worker = zg_named(md);

	/* Never left to the kernel: it would choose among all sockets of the port, and a service
	 * manager may hold more of them than there are workers. */
	if (worker >= ZG_WORKERS)
		worker = md->hash % ZG_WORKERS;
	bpf_sk_select_reuseport(md, zg_map(sockets), &worker, 0);
	return SK_PASS;
}

int zg_steer_tun(struct __sk_buff *skb)
{
	/* The key of networks, and from the address on the key of addresses. */
	struct {
		__u32 bits;
		__u32 family;
		__u8 address[16];
	} key = { .bits = 32 + 32, .family = 4 };
	const __u32 *owner;
	__u8 first;

	if (bpf_skb_load_bytes(skb, 0, &first, sizeof(first)))
		return 0;
	if (first >> 4 == 4) {
		if (bpf_skb_load_bytes(skb, 16, key.address, 4))
			return 0;
	} else {
		key.bits = 32 + 128;
		key.family = 6;
		if (bpf_skb_load_bytes(skb, 24, key.address, 16))
			return 0;
	}
	owner = bpf_map_lookup_elem(zg_map(owners), key.address);
	if (!owner)
		owner = bpf_map_lookup_elem(zg_map(networks), &key);
	return owner ? *owner : 0;
}
