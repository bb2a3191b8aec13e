/* SPDX-License-Identifier: Apache-2.0 */
/* What lies in the edge program's maps; zgate_bpf/edge_layouts.py describes the same for
 * Python. Addresses are as they stand in the packet, numbers in host order. */
#ifndef ZGATE_EDGE_TABLES_H
#define ZGATE_EDGE_TABLES_H

#define ZG_EDGE_VERSION_1 0x00000001u    /* RFC 9000 */
#define ZG_EDGE_VERSION_2 0x6b3343cfu    /* RFC 9369 */

/* zg_edge_settings: one entry. A rate is a packet every interval, and a burst that may run
 * ahead of the clock by the tolerance (the generic cell rate algorithm); interval 0: no limit. */
struct zg_edge_settings {
	__u64 source_interval_ns;        /* Initials of one source */
	__u64 source_tolerance_ns;
	__u64 total_interval_ns;         /* Initials of all sources */
	__u64 total_tolerance_ns;
	__u64 version_interval_ns;       /* packets of unknown versions */
	__u64 version_tolerance_ns;
	__u64 owner_factor;              /* of the mask in connection IDs */
	__u64 owner_offset;
	__u32 owners;                    /* how many there are; 0: IDs are not looked at */
	__u16 port;                      /* ours; 0: nothing is looked at */
	__u16 zero;
};

/* zg_edge_addresses: where the port is ours. */
struct zg_edge_address {
	__u32 family;                    /* 4 or 6 */
	__u32 word[4];                   /* IPv4: the first, the others zero */
};

/* zg_edge_sources: when a source that sends evenly would send its next Initial. */
struct zg_edge_source {
	__u32 family;
	__u32 prefix[2];                 /* IPv4: the address and 0; IPv6: the /64 */
};

/* zg_edge_block4 and 6: an array of one map, the trie that is in force. */
struct zg_edge_prefix4 {
	__u32 bits;
	__u32 word;
};

struct zg_edge_prefix6 {
	__u32 bits;
	__u32 word[4];
};

/* zg_edge_totals: as zg_edge_sources, for what is counted over all sources. */
enum zg_edge_total { ZG_EDGE_TOTAL_INITIALS = 0, ZG_EDGE_TOTAL_VERSIONS = 1, ZG_EDGE_TOTALS = 2 };

#endif
