/* SPDX-License-Identifier: Apache-2.0 */
/* The extension headers of IPv6 that may stand before the upper layer (RFC 8200 section 4, RFC
 * 4302). Each program walks along them in its own way: what the verifier makes of a shared walk
 * costs the policy program several percent. */
#ifndef ZGATE_IPV6_EXTENSION_H
#define ZGATE_IPV6_EXTENSION_H

enum zg_extension {
	ZG_HOP_BY_HOP = 0,
	ZG_ROUTING = 43,
	ZG_FRAGMENT = 44,
	ZG_AUTHENTICATION = 51,
	ZG_DESTINATION_OPTIONS = 60,
};

static __always_inline bool zg_is_extension(__u8 next)
{
	return next == ZG_HOP_BY_HOP || next == ZG_ROUTING || next == ZG_FRAGMENT ||
	       next == ZG_AUTHENTICATION || next == ZG_DESTINATION_OPTIONS;
}

#endif
