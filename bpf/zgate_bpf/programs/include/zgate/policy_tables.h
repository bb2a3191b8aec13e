/* SPDX-License-Identifier: Apache-2.0 */
/* What lies in the policy program's maps. zgate_bpf/layouts.py describes the same structs for
 * Python; the loader asserts every size and offset when it compiles the program.
 *
 * Numbers are in host order, except where a name ends in be (network order). Addresses are
 * always as they stand in the packet. */
#ifndef ZGATE_POLICY_TABLES_H
#define ZGATE_POLICY_TABLES_H

#define ZG_NO_RULE 0xFFFFFFFFu
#define ZG_NO_LIST 0xFFFFFFFFu
#define ZG_NO_INTERVAL 0xFFFFFFFFu
#define ZG_NO_CLIENT 0xFFFFFFFFu
#define ZG_MAX_RULE_STEPS 40             /* intervals visited in a list and its parents */
#define ZG_STEPS 164                     /* prefix lengths: 33 of IPv4, 129 of IPv6 */
#define ZG_MAX_STEP_DEPTH 8              /* of a balanced tree of 129 */
#define ZG_COST_SHIFT 18                 /* a byte's cost is in 2^-18 ns */
#define ZG_FLOW_BURST_NS 1000000000u     /* new flows of one second may come at once */
#define ZG_MAX_PERIODS 8                 /* policies walked to find the one that holds now */
#define ZG_MAX_SERVICES 4096
#define ZG_MAX_OFFERS 16384
#define ZG_MAX_NETWORKS 4096
#define ZG_OFFERS_PER_SERVICE 16
#define ZG_SCRATCH_BYTES 128             /* of zg_scratch (per CPU): the program's own */
#define ZG_PASS_MARK 0x005A0000u
#define ZG_PASS_MASK 0x00FF0000u

/* What a packet's judge is asked with by BPF_PROG_TEST_RUN: leave no trace. Only a test run
 * can say it, see zg_is_dry_run(). */
#define ZG_DRY_RUN_MARK 0x7A670001u

enum zg_action { ZG_DENY = 0, ZG_ALLOW = 1 };
enum zg_direction { ZG_UP = 0, ZG_DOWN = 1 };
enum zg_event_kind { ZG_EVENT_FLOW_ALLOWED = 1, ZG_EVENT_DENIED = 2 };

/* An IPv4 address lies in the first word; the other three are zero. */
struct zg_address {
	__u32 word[4];
};

/* zg_active: the one word whose change is the change of policy. */
struct zg_active {
	__u32 revision;
	__u32 slot_plus_1;               /* 0: no policy was ever loaded */
};

/* zg_clients: who holds an address. */
struct zg_client_key {
	__u32 family;                    /* 4 or 6 */
	struct zg_address address;
};

struct zg_client {
	__u32 index;
	__u32 epoch;                     /* flows of another epoch are a former holder's */
};

/* zg_assignments (per generation), by client index. */
struct zg_assignment {
	__u32 policy;                    /* 0: none */
	__u32 byte_cost;                 /* 2^-ZG_COST_SHIFT ns; 0: bandwidth has no limit */
	__u32 burst_ns;                  /* of bandwidth */
	__u32 flow_cost_ns;              /* 0: new flows have no limit */
};

/* How the longest of a policy's prefixes around an address is found: a binary tree over the
 * prefix lengths that the policy uses. Found at this length: look for a longer one. */
struct zg_step {
	__u8 bits;
	__u8 longer;                     /* the next step, ZG_STEPS or more: none */
	__u8 shorter;
	__u8 zero;
};

/* zg_policies (per generation), by policy. Rules may have a beginning and an end: a policy
 * holds until a time, and names the one that holds from then on. */
struct zg_policy {
	__u64 until_ns;                  /* CLOCK_MONOTONIC */
	__u32 next;                      /* policy; 0: none, and nothing passes */
	__u32 default_action;
	__u8 first4;                     /* step */
	__u8 first6;
	__u8 zero[6];
	struct zg_step steps[ZG_STEPS];
};

/* zg_destinations (per generation): a prefix that rules name, or a mark that there are longer
 * ones inside. */
struct zg_destination_key {
	__u32 policy;
	__u16 family;
	__u16 bits;
	struct zg_address address;
};

struct zg_destination {
	__u32 list;                      /* of the longest prefix up to here; or ZG_NO_LIST */
};

/* zg_lists (per generation), by list: its intervals, and the list of the next prefix around. */
struct zg_list {
	__u32 root;                      /* interval; a balanced tree */
	__u32 parent;
	__u32 lowest_above;              /* rule of all lists above; ZG_NO_RULE: none */
};

/* zg_intervals (per generation): services from this one up to the next interval's. */
struct zg_interval {
	__u32 start;                     /* protocol << 16 | port; ICMP: port is type << 8 | code */
	__u32 rule;
	__u32 before;                    /* the tree's intervals that begin earlier, and later */
	__u32 after;
};

/* zg_rules (per generation), by rule. */
struct zg_rule {
	__u32 action;
};

/* zg_flows: allowed flows, seen from the client. Denials are not kept: they cost the same
 * again, and a scan must not push out what others are using. */
struct zg_flow_key {
	__u8 family;
	__u8 protocol;
	__u16 zero;
	__u16 client_port;               /* ICMP echo: the identifier; other ICMP: type, code */
	__u16 remote_port;               /* ICMP echo: 0; other ICMP: ZG_NO_REPLY */
	struct zg_address client;
	struct zg_address remote;
};

#define ZG_NO_REPLY 0xFFFF

struct zg_flow {
	__u64 seen_ns;                   /* CLOCK_MONOTONIC */
	__u64 verdict;                   /* rule << 32 | revision: one store, one load */
	__u64 until_ns;                  /* when the policy that judged it ends */
	__u32 epoch;
	__u32 client_index;
	__u16 service;                   /* what it is judged by: port, or ICMP type and code */
	__u8 state;                      /* enum zg_flow_state */
	__u8 limited;                    /* its bytes are charged to the client's bandwidth */
	__u32 backend;                   /* to a service: the offer it was given to, plus 1 */
};

enum zg_flow_state {
	ZG_FLOW_ANSWERED = 1,            /* a packet came back */
	ZG_FLOW_CLIENT_FIN = 2,
	ZG_FLOW_REMOTE_FIN = 4,
	ZG_FLOW_RESET = 8,
};

/* zg_fragments: what the first fragment said, for the rest of its packet. */
struct zg_fragment_key {
	__u8 family;
	__u8 protocol;                   /* IPv4 only: RFC 791; RFC 8200 leaves it out */
	__u16 zero;
	__u32 identification_be;
	struct zg_address source;
	struct zg_address destination;
};

struct zg_fragment {
	__u64 seen_ns;
	__u16 source_port;
	__u16 destination_port;
	__u16 service;
	__u8 protocol;
	__u8 icmp;                       /* enum zg_icmp */
};

/* zg_endpoints, by zg_client_key: what an address is that no client holds. */
enum zg_endpoint_kind {
	ZG_ENDPOINT_SERVICE = 1,         /* a service's virtual IP */
	ZG_ENDPOINT_OFFER = 2,           /* what stands for it towards one connector */
	ZG_ENDPOINT_GATEWAY = 3,         /* the gateway's own */
};

struct zg_endpoint {
	__u32 kind;
	__u32 number;                    /* service or offer */
};

/* zg_services, by service. An address that is all zero: none of this family. */
struct zg_service {
	struct zg_address address4;
	struct zg_address address6;
	__u16 offers[ZG_OFFERS_PER_SERVICE]; /* each plus 1; 0: none */
};

/* zg_offers, by offer: that one connector offers one service. */
struct zg_offer {
	__u32 service_plus_1;            /* 0: no such offer */
	__u32 client_index;              /* the connector */
	__u32 use;                       /* enum zg_offer_use */
	__u32 open_flows;                /* as reported, and those that it was given since */
	struct zg_address address4;
	struct zg_address address6;
};

enum zg_offer_use {
	ZG_OFFER_GONE = 0,               /* its flows choose anew */
	ZG_OFFER_UP = 1,
	ZG_OFFER_KEEP = 2,               /* keeps the flows it has, and gets no other */
};

/* zg_networks: what lies behind a connector, longest prefix first. */
struct zg_network_key {
	__u32 bits;                      /* of what follows: 32, and the prefix's */
	__u32 family;
	struct zg_address address;
};

struct zg_network {
	__u32 client_index;              /* the connector; ZG_NO_CLIENT: none now */
};

/* zg_counters (per CPU), by client index. */
struct zg_counters {
	__u64 up_packets;
	__u64 up_bytes;
	__u64 down_packets;
	__u64 down_bytes;
	__u64 up_dropped_packets;
	__u64 down_dropped_packets;
	__u64 flows;
};

/* zg_statistics (per CPU). */
enum zg_statistic {
	ZG_STATISTIC_EVENTS_LOST = 0,    /* the ring buffer was full */
	ZG_STATISTIC_EVENTS_SUPPRESSED = 1,
	ZG_STATISTICS = 2,
};

/* zg_gates, by client index; the last one is that of all unknown clients. */
struct zg_gate {
	__u32 window;                    /* units of 2^30 ns, about a second */
	__u32 sent[2];                   /* in this window: flows allowed, denials */
	__u32 suppressed;                /* ever */
	__u32 limited_suppressed;        /* ever, of those about limits */
};

/* zg_limiters, by client index: when everything charged so far is paid back (CLOCK_MONOTONIC).
 * Shared by all CPUs. Never reset: it is in the past by itself after a second or so, and a
 * client must not get rid of a debt by dialling anew. */
struct zg_limiter {
	__u64 up_due_ns;
	__u64 down_due_ns;
	__u64 flows_due_ns;
	__u64 told_ns;                   /* when a limit that bit was last told of */
};

/* zg_events. */
struct zg_event {
	__u64 time_ns;                   /* CLOCK_MONOTONIC, coarse */
	__u32 client_index;
	__u32 rule;
	__u32 revision;
	__u32 length_bytes;
	__u32 suppressed;                /* of this client, ever; limits apart from the rest */
	__u8 kind;
	__u8 reason;
	__u8 direction;
	__u8 family;
	__u8 protocol;
	__u8 zero;
	__u16 source_port;
	__u16 destination_port;          /* ICMP: type << 8 | code */
	__u16 zero2;
	struct zg_address source;
	struct zg_address destination;
};

/* What the program leaves in the packet's control block, word by word: nobody reads it on a
 * device, BPF_PROG_TEST_RUN hands it back. */
enum zg_verdict_word {
	ZG_VERDICT_REASON = 0,           /* reason | flags << 8 */
	ZG_VERDICT_CLIENT = 1,
	ZG_VERDICT_RULE = 2,
	ZG_VERDICT_REVISION = 3,
};

enum zg_verdict_flag {
	ZG_VERDICT_KNOWN_FLOW = 1,       /* the flow table had it */
	ZG_VERDICT_RELATED = 2,          /* an ICMP error about a flow */
	ZG_VERDICT_NEW_FLOW = 4,
	ZG_VERDICT_JUDGED = 8,           /* the policy was asked */
	ZG_VERDICT_CHOSEN = 16,          /* its flow was given to an offer now */
	ZG_VERDICT_NO_OFFER = 32,        /* a dry run: it passes, and no connector takes it */
};

#endif
