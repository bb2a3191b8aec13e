/* SPDX-License-Identifier: Apache-2.0 */
/* Where the fields are that the TUN's offloads read and change (RFC 791, 8200, 9293, 768), and the
 * vnet header's values (virtio 1.2, section 5.1.6). */
#ifndef ZDP_OFFLOAD_HEADERS_H
#define ZDP_OFFLOAD_HEADERS_H

enum {
	IPV4_BYTES = 20, /* without options */
	IPV4_TOS = 1,
	IPV4_LENGTH = 2,
	IPV4_ID = 4,
	IPV4_FRAGMENT = 6,
	IPV4_TTL = 8,
	IPV4_PROTOCOL = 9,
	IPV4_CHECKSUM = 10,
	IPV4_ADDRESSES = 12,
	IPV4_ADDRESSES_BYTES = 8,
	IPV4_DF = 0x4000,
	IPV4_IS_FRAGMENT = 0x3fff, /* more fragments, or an offset */

	IPV6_BYTES = 40,
	IPV6_LENGTH = 4,
	IPV6_NEXT_HEADER = 6,
	IPV6_HOP_LIMIT = 7,
	IPV6_ADDRESSES = 8,
	IPV6_ADDRESSES_BYTES = 32,

	PROTOCOL_HOP_BY_HOP = 0,
	PROTOCOL_TCP = 6,
	PROTOCOL_UDP = 17,
	PROTOCOL_ROUTING = 43,
	PROTOCOL_DESTINATION = 60,

	TCP_BYTES = 20, /* without options */
	TCP_SEQUENCE = 4,
	TCP_ACKNOWLEDGEMENT = 8,
	TCP_OFFSET = 12, /* upper four bits */
	TCP_FLAGS = 13,
	TCP_CHECKSUM = 16,
	TCP_FIN = 0x01,
	TCP_PSH = 0x08,
	TCP_ACK = 0x10,
	TCP_CWR = 0x80,

	UDP_BYTES = 8,
	UDP_LENGTH = 4,
	UDP_CHECKSUM = 6,

	PORTS_BYTES = 4,

	VNET_NEEDS_CHECKSUM = 1,
	VNET_GSO_NONE = 0,
	VNET_GSO_TCPV4 = 1,
	VNET_GSO_TCPV6 = 4,
	VNET_GSO_UDP_L4 = 5,
	VNET_GSO_ECN = 0x80,
};

#endif
